"""A run that begins with another run's parameters, and one that trains longer than it began."""

import dataclasses

import numpy as np
import pytest
from helpers.support import experiment, fingerprint, quiet

import transformer_jax
from transformer_jax.errors import ConfigError
from transformer_jax.storage.arrays import named_leaves
from transformer_jax.training.init_from import parse_source
from transformer_jax.training.train import train

STEPS = 4


@pytest.fixture(scope='module')
def other(tmp_path_factory):
    """The workdir of a run of a few steps."""
    workdir = tmp_path_factory.mktemp('other') / 'w'
    train(
        experiment(train__steps=STEPS, checkpoint__every=2, checkpoint__average=2), workdir, quiet
    )
    return workdir


@pytest.fixture(scope='module')
def group(tmp_path_factory):
    """The workdir of two seeds side by side, of a few steps."""
    workdir = tmp_path_factory.mktemp('group') / 'w'
    changes = {'checkpoint__every': 2, 'checkpoint__average': 2, 'evaluate__every': 2}
    train(experiment(train__steps=STEPS, train__num_seeds=2, **changes), workdir, quiet)
    return workdir


def with_steps(config, steps):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def begin(other, tmp_path, choice='', **changes):
    """Train one step from another run without moving; return (parameters, lines of the log)."""
    lines = []
    changes = {'train__steps': 1, 'optim__learning_rate': 0.0, **changes}
    config = experiment(train__init_from=f'{other}{choice}', **changes)
    train(config, tmp_path / 'w', lines.append)
    return parameters(tmp_path / 'w', ''), ' '.join(lines)


def parameters(workdir, checkpoint):
    run = transformer_jax.open_run(workdir, checkpoint)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(run.params).items()}


@pytest.mark.slow
@pytest.mark.parametrize('choice', ['', ':2', ':avg:2'])
def test_it_begins_with_the_parameters_of_the_other(other, tmp_path, choice):
    found, log = begin(other, tmp_path, choice)
    expected = parameters(other, choice.removeprefix(':'))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)
    assert f'parameters of {other}, step {"4, 2" if "avg" in choice else choice[1:2]}'[:-1] in log
    assert 'new' not in log.partition('parameters of')[2].partition('step 1')[0]


@pytest.mark.slow
@pytest.mark.parametrize('choice', ['', ':last', ':avg:2', ':2', ':best'])
def test_it_begins_with_a_seed_of_a_group(group, tmp_path, choice):
    found, log = begin(group / '1', tmp_path, choice)
    for name, array in parameters(group / '1', choice.removeprefix(':')).items():
        np.testing.assert_array_equal(found[name], array, name)
    assert f'parameters of {group / "1"}, step ' in log


@pytest.mark.slow
def test_what_is_new_and_what_is_left_out_is_listed(other, tmp_path):
    found, log = begin(other, tmp_path, model__position='learned(max_len=48)')
    line = next(part for part in log.split('parameters of')[1:])
    assert '; new: ' in line
    assert 'position' in line
    expected = parameters(other, '')
    assert len(found) > len(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.slow
def test_fewer_layers_leave_parameters_out(tmp_path, other):
    deep = tmp_path / 'deep'
    train(experiment(train__steps=1, model__decoder_layers=2), deep, quiet)
    _, log = begin(deep, tmp_path / 'shallow')
    assert '; left out: decoder_1/' in log


@pytest.mark.slow
def test_the_moving_average_begins_there_too(other, tmp_path):
    """The average of a step that does not move is rounded: 0.9 p + 0.1 p."""
    found, _ = begin(other, tmp_path, train__ema=0.9)
    for name, array in parameters(other, '').items():
        np.testing.assert_allclose(found[name], array, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_seeds_side_by_side_begin_with_the_same(other, tmp_path):
    config = experiment(
        train__init_from=str(other),
        train__steps=1,
        train__num_seeds=2,
        optim__learning_rate=0.0,
    )
    train(config, tmp_path / 'w', quiet)
    for seed in '01':
        found = parameters(tmp_path / 'w' / seed, '')
        for name, array in parameters(other, '').items():
            np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.slow
def test_it_uses_the_vocabulary_of_the_other(other, tmp_path):
    begin(other, tmp_path, data__task='number_words(limit=200, held_out=20)')
    name = 'tokenizer/tokenizer.model'
    assert (tmp_path / 'w' / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_a_resumed_run_needs_the_other_no_more(other, tmp_path):
    gone = tmp_path / 'gone'
    train(experiment(train__steps=2), gone, quiet)
    config = experiment(train__init_from=str(gone), train__steps=8, optim__schedule='constant')
    train(config, tmp_path / 'whole', quiet)
    half = with_steps(config, 4)
    train(half, tmp_path / 'w', quiet)
    gone.rename(tmp_path / 'elsewhere')
    train(config, tmp_path / 'w', quiet)
    assert fingerprint(tmp_path / 'w') == fingerprint(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('choice', 'changes', 'message'),
    [
        (':3', {}, 'there is no step 3'),
        (':best', {}, 'no step is recorded as best'),
        (':avg:9', {}, '9 intact checkpoints are needed'),
        (':avg:0', {}, r"^train.init_from='.*:avg:0': avg:0: expected best, last"),
        ('/nowhere', {}, r"^train.init_from='.*nowhere': /.*/nowhere has no config.json"),
        ('', {'model__d_ff': 48}, r'other shapes: decoder_0.* is \[16, 32\] there and \[16, 48\]'),
        ('', {'data__tokenizer': 'bytes', 'data__vocab_size': 260}, "set data.tokenizer='bpe'"),
        ('', {'data__vocab_size': 80}, 'data.vocab_size=80, but .*: set data.vocab_size=90'),
    ],
)
def test_what_cannot_be_is_refused_by_name(other, tmp_path, choice, changes, message):
    with pytest.raises(transformer_jax.UserError, match=message):
        begin(other, tmp_path, choice, **changes)
    begin(other, tmp_path)  # The corrected command works.


@pytest.mark.parametrize(
    ('source', 'path', 'choice'),
    [
        ('runs/a', 'runs/a', ''),
        ('runs/a:best', 'runs/a', 'best'),
        ('runs/a:30', 'runs/a', '30'),
        ('runs/a:avg:5', 'runs/a', 'avg:5'),
        ('gs://bucket/a', 'gs://bucket/a', ''),
        ('gs://bucket/a:last', 'gs://bucket/a', 'last'),
        ('runs/a:b', 'runs/a:b', ''),
    ],
)
def test_a_source_is_a_workdir_and_a_checkpoint(source, path, choice):
    assert parse_source(source) == (path, choice)


@pytest.mark.slow
@pytest.mark.parametrize(
    'schedule',
    [
        'noam(warmup=4)',
        *(pytest.param(s, marks=pytest.mark.rare) for s in ('constant', 'inverse_sqrt(warmup=3)')),
    ],
)
def test_more_steps_end_as_if_they_had_been_there_from_the_start(tmp_path, schedule):
    config = experiment(train__steps=8, optim__schedule=schedule)
    train(config, tmp_path / 'whole', quiet)
    for steps in (3, 6, 8):
        train(with_steps(config, steps), tmp_path / 'w', quiet)
    assert fingerprint(tmp_path / 'w') == fingerprint(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('schedule', 'steps'), [('linear(warmup=4)', 6), ('cosine', 6), ('constant', 3)]
)
def test_steps_may_not_change_where_an_update_depends_on_them(tmp_path, schedule, steps):
    config = experiment(train__steps=4, optim__schedule=schedule)
    train(config, tmp_path, quiet)
    with pytest.raises(ConfigError, match=rf'train\.steps: 4 -> {steps}'):
        train(with_steps(config, steps), tmp_path, quiet)


@pytest.mark.slow
def test_a_link_to_the_other_is_recorded_as_the_other(other, tmp_path):
    (tmp_path / 'link').symlink_to(other)
    begin(tmp_path / 'link', tmp_path, ':2')
    assert transformer_jax.open_run(tmp_path / 'w').config.train.init_from == f'{other}:2'


@pytest.mark.slow
def test_a_group_is_refused_as_the_other_by_name(group, tmp_path):
    line = r"^train.init_from='.*': .* holds a group of seeds: name one of them, .*/0, .*/1$"
    with pytest.raises(ConfigError, match=line):
        begin(group, tmp_path)


@pytest.mark.slow
def test_the_place_of_the_other_may_be_relative(other, tmp_path, monkeypatch):
    monkeypatch.chdir(other.parent)
    config = experiment(train__steps=2, train__init_from='w:2', optim__schedule='constant')
    train(config, tmp_path / 'w', quiet)
    stored = transformer_jax.open_run(tmp_path / 'w').config
    assert stored.train.init_from == f'{other}:2'
    train(config, tmp_path / 'w', quiet)  # The same command is not refused.
