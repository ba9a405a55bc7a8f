"""Plans: which runs there are, what is refused at once, and that versions are never mixed."""

import json
import re

import pytest
from helpers.tiny_ablation import EVERYTHING, VARIANTS, names, plan

from transformer_jax.ablation import Metric
from transformer_jax.ablation import runner as ablate_lib
from transformer_jax.ablation.results import differences, load_results
from transformer_jax.errors import ConfigError, WorkdirError


def test_equal_configs_share_their_runs(tmp_path):
    made = plan(tmp_path)
    assert names(made.trials) == EVERYTHING
    assert made.settings[0].variants == ('base', 'two heads')
    assert [run.config.train.seed for run in made.trials[:2]] == [0, 1]
    assert made.record['variants']['two heads']['folder'] == 'base'
    assert 'two heads: the same config as base, run once' in ablate_lib.summary(made, 6)


def test_seeds_count_up_from_the_base(tmp_path):
    assert [run.seed for run in plan(tmp_path, seeds=3, **{'train.seed': 5}).trials][:3] == [
        5,
        6,
        7,
    ]


def test_only_and_parts_divide_the_runs(tmp_path):
    assert (
        names(plan(tmp_path, only=('two heads', 'no dropout')).trials)
        == EVERYTHING[:2] + EVERYTHING[4:]
    )
    parts = [names(plan(tmp_path, part=f'{i}/4').trials) for i in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(EVERYTHING)
    assert parts == [EVERYTHING[:1], EVERYTHING[1:3], EVERYTHING[3:4], EVERYTHING[4:]]  # neighbors


@pytest.mark.parametrize('part', ['3/2', '2/2', 'x', '1', '1/0', '0/0', '-1/2', '1/2/3', ''])
def test_parts_that_are_none(tmp_path, part):
    with pytest.raises(ConfigError, match=re.escape(f'--part={part}: it takes i/n')):
        plan(tmp_path, part=part)


def test_only_knows_the_variants(tmp_path):
    with pytest.raises(
        ConfigError, match="--only=one haed: no such variant; did you mean 'one head'"
    ):
        plan(tmp_path, only=('one haed',))


def test_the_seeds_are_those_of_ablate(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r'base: train\.num_seeds=2: the seeds are those of ablate, and --seeds_per_program',
    ):
        plan(tmp_path, {'base': {}}, **{'train.num_seeds': 2})


@pytest.mark.parametrize(
    ('metric', 'changes', 'message'),
    [
        (
            Metric('blue'),
            {},
            'base: test blue: data.task=.* is scored by loss, accuracy, .* bleu, chrf, exact_match',
        ),
        (
            Metric('loss', checkpoint='best'),
            {},
            r'base: test loss: evaluate\.every=0 finds no best checkpoint',
        ),
        (Metric('loss', checkpoint='avg:3'), {}, r'checkpoint\.average=1 keeps too few for avg:3'),
        (Metric('loss', length=20), {}, 'is scored by accuracy, exact_match'),
        (
            Metric('accuracy', length=40),
            {'model.position': 'learned(max_len=32)'},
            'read 32 tokens at most',
        ),
        (
            Metric('sink', 'validation'),
            {'model.kind': 'rnn_seq2seq', 'model.rnn': "gru(attention='none')"},
            'validation sink: model.rnn=.* has no attention to probe',
        ),
        (
            Metric('max_logit'),
            {'model.kind': 'rnn_seq2seq'},
            'test max_logit: model.rnn=.* keeps no scores before a normalizer',
        ),
        (
            Metric('logit_std'),
            {'model.attention': 'linear'},
            "test logit_std: model.attention='linear' keeps no scores before a normalizer",
        ),
        (
            Metric('entropy'),
            {'model.attention': 'differential'},
            "test entropy: model.attention='differential' has negative weights",
        ),
        (
            Metric('chrf', length=20),
            {},
            'test chrf at 20: data.task=.* is scored by accuracy, exact_match, bleu',
        ),
        (
            Metric('decode_seconds'),
            {
                'model.kind': 'classifier',
                'data.task': 'parity(length=20, test_length=20)',
                'data.vocab_size': 6,
            },
            "decode_seconds: model.kind='classifier' predicts a class",
        ),
        (
            Metric('gradient_norm', part='decoder_5/ffn'),
            {},
            "test gradient_norm of decoder_5/ffn: no parameter has 'decoder_5/ffn' in its name",
        ),
        (Metric('sink', checkpoint='best'), {}, 'finds no best checkpoint'),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_before_anything_runs(
    tmp_path, metric, changes, message
):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path / 'root', VARIANTS, (metric,), **changes)
    assert not (tmp_path / 'root').exists()


# --- Roots ----------------------------------------------------------------------------------------


def test_another_version_of_an_experiment_is_refused_with_its_keys(tmp_path):
    plan(tmp_path).write()
    with pytest.raises(ConfigError, match='another version') as refusal:
        plan(tmp_path, VARIANTS | {'no dropout': {'model.dropout': 0.2}}, **{'train.steps': 5})
    lines = str(refusal.value).split('\n  ')[1:]
    assert lines == [
        'base: train.steps: 4 -> 5',
        'no dropout: model.dropout: 0.0 -> 0.2; train.steps: 4 -> 5',
        'one head: train.steps: 4 -> 5',
        'two heads: train.steps: 4 -> 5',
    ]
    changed = {'checkpoint.keep': 2, 'parallel.mesh.data': 1}  # no score depends on these
    assert names(plan(tmp_path, **changed).trials) == EVERYTHING
    with pytest.raises(ConfigError, match=r'base: parallel\.mode: "jit" -> "pmap"'):
        plan(tmp_path, **{'parallel.mode': 'pmap'})
    assert differences(
        {'data.prefetch': 1, 'data.prefetched': 1}, {'data.prefetch': 2, 'data.prefetched': 2}
    ) == ['data.prefetched: 1 -> 2']  # whole keys are compared, as for a workdir


def test_variants_seeds_and_metrics_may_come_and_go(tmp_path):
    plan(tmp_path, seeds=3).write()
    variants = {'new': {'model.d_ff': 8}, 'also base': {}, 'one head': VARIANTS['one head']}
    made = plan(tmp_path, variants, (Metric('bleu'),), seeds=1)
    assert made.record['seeds'] == [0, 1, 2]
    assert names(made.trials) == [
        'new/0',
        'base/0',
        'one-head/0',
    ]  # a config keeps its folder under another name
    made.write()
    assert load_results(tmp_path)['experiment'] == made.record
    [*_, newest] = plan(tmp_path, variants | {'base': {'model.d_ff': 9}}, seeds=1).trials
    assert newest.name.startswith('base-')  # 'base' is the folder of 'also base' since then


def test_a_root_that_cannot_be_one(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WorkdirError, match='is a file: choose a directory'):
        plan(tmp_path / 'file')
    with pytest.raises(WorkdirError, match=r'cannot write .*file/root'):
        plan(tmp_path / 'file' / 'root').write()
    (tmp_path / 'experiment.json').write_text('{"variants": 3}')
    with pytest.raises(WorkdirError, match='does not describe an experiment'):
        plan(tmp_path)
    (tmp_path / 'experiment.json').write_text(
        json.dumps(plan(tmp_path / 'new').record | {'reference': 'nonesuch'})
    )
    with pytest.raises(WorkdirError, match='does not describe an experiment'):
        plan(tmp_path)
    with pytest.raises(ConfigError, match=r'has no experiment\.json'):
        load_results(tmp_path / 'file' / '..' / '..')
