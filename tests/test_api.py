"""The public API, as a notebook uses it: `import transformer_jax` and no more."""

import ast
import functools
import importlib
import inspect
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.support import CONFIG_FILE, TINY, quiet

import transformer_jax
from transformer_jax.config import default_config, flatten
from transformer_jax.display.figures import InlineFigure

NUMBER_WORDS = f'{CONFIG_FILE}:en-de'
TRANSLATOR = TINY | {
    'model.decoder_layers': 2,
    'evaluate.every': 6,
    'evaluate.max_examples': 2,
    'checkpoint.every': 6,
}
LANGUAGE = TINY | {
    'model.kind': 'decoder_only',
    'model.position': 'learned(max_len=128)',
    'data.batching': 'buckets(lengths=(48,))',
    'train.batch_tokens': 768,
    'train.steps': 3,
    'decode.method': 'sample',
}
CLASSIFIER = {
    'data.task': 'listops(min_length=8, max_length=30, max_depth=4, max_args=5, examples=200)',
    'data.batching': 'buckets(lengths=(32,))',
    'model.pooling': 'first',
    'model.encoder_layers': 1,
    'model.d_model': 16,
    'model.d_ff': 32,
    'model.num_heads': 2,
    'train.steps': 2,
    'train.batch_tokens': 512,
    'evaluate.every': 0,
}


def config(changes):
    return transformer_jax.load_config(NUMBER_WORDS, changes)


@pytest.fixture(scope='module')
def translator(tmp_path_factory):
    return transformer_jax.train(
        config(TRANSLATOR), tmp_path_factory.mktemp('api') / 'translator', quiet
    )


@pytest.fixture(scope='module')
def language(tmp_path_factory):
    path = tmp_path_factory.mktemp('api') / 'language'
    return transformer_jax.train(config(LANGUAGE), path, quiet)


# --- The package ----------------------------------------------------------------------------------


def test_the_import_alone_loads_nothing():
    code = (
        'import sys; before = set(sys.modules); import transformer_jax; '
        'print(*(set(sys.modules) - before), sep="\\n")'
    )
    found = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True)
    loaded = {name for name in found.stdout.split() if name.startswith('transformer_jax')}
    assert loaded == {'transformer_jax'}
    assert not {'jax', 'flax', 'numpy'} & set(found.stdout.split())


def test_tune_host_memory_comes_before_jax_looks_for_devices():
    code = (
        'import sys, transformer_jax; transformer_jax.tune_host_memory(); '
        'from jax._src import xla_bridge; print(len(xla_bridge._backends)); '
        'print("flax" in sys.modules)'
    )
    found = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True)
    assert found.stdout.split() == ['0', 'False']


def test_every_public_name_is_there_and_documented():
    assert sorted(transformer_jax.__all__) == sorted(transformer_jax._MODULES)
    assert set(transformer_jax.__all__) <= set(dir(transformer_jax))
    for name in transformer_jax.__all__:
        value = getattr(transformer_jax, name)
        assert inspect.getdoc(value)
        if inspect.isfunction(value) and name != 'tune_host_memory':
            assert 'Example:' in value.__doc__, name
    for name, member in inspect.getmembers(transformer_jax.Run, inspect.isfunction):
        if not name.startswith('_'):
            assert 'Example:' in member.__doc__, name


def test_editors_know_the_names():
    """The imports for type checkers are those that `__getattr__` makes."""
    tree = ast.parse(inspect.getsource(transformer_jax))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    listed = {alias.name: line.module for line in block.body for alias in line.names}
    assert listed == transformer_jax._MODULES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'transformer_jax' has no attribute 'trian'"):
        transformer_jax.trian  # noqa: B018
    importlib.import_module('transformer_jax')


# --- Configurations -------------------------------------------------------------------------------


def test_overrides_are_those_of_the_command_line():
    loaded = config({'train.steps': 7, 'optim.learning_rate': 1})
    assert (loaded.train.steps, loaded.optim.learning_rate) == (7, 1.0)
    assert loaded.data.target == 'de'


def test_a_config_dict_is_a_configuration():
    mine = default_config()
    mine.train.steps = 5
    assert transformer_jax.load_config(mine).train.steps == 5
    assert mine.train.steps == 5


@pytest.mark.parametrize(
    ('source', 'overrides', 'message'),
    [
        ('configs/nothing.py', {}, 'configs/nothing.py: there is no such file'),
        (NUMBER_WORDS, {'train.stps': 1}, "train.stps: unknown .*did you mean 'steps'"),
        (NUMBER_WORDS, {'trian.steps': 1}, "trian: unknown .*did you mean 'train'"),
        (NUMBER_WORDS, {'train.steps.more': 1}, 'train.steps.more: steps is a key and no section'),
        (NUMBER_WORDS, {'train.steps': 1.5}, 'train.steps=1.5 is of type float, it takes int'),
        (NUMBER_WORDS, {'data.limit': 1}, 'it is called data.max_train_examples now'),
        (NUMBER_WORDS, {'model.attention': 'softmx'}, "did you mean 'softmax'"),
        ({'train': {}}, {}, 'this is a dict, not a ConfigDict'),
    ],
)
def test_what_cannot_work_is_refused(source, overrides, message):
    with pytest.raises(transformer_jax.ConfigError, match=message):
        transformer_jax.load_config(source, overrides)


# --- The parts ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loop_of_ones_own_is_that_of_train(translator, tmp_path):
    own = config(TRANSLATOR)
    program = transformer_jax.make_program(own)
    data = transformer_jax.load_data(own, tmp_path / 'mine', log=quiet)
    state = program.init_state()
    losses = []
    for batch in itertools.islice(program.batches(data), 6):
        state, metrics = program.train_step(state, batch)
        losses.append(metrics['loss'].item())
    assert losses == translator.metrics('train')['loss'][:6].tolist()
    assert not (tmp_path / 'mine' / 'config.json').exists()


@pytest.mark.slow
def test_the_pure_step_is_that_of_the_program(tmp_path):
    own = config(TRANSLATOR)
    program = transformer_jax.make_program(own)
    data = transformer_jax.load_data(own, tmp_path, log=quiet)
    batch = next(data.train_iterator(lambda rows: (0, rows), 8))
    state = transformer_jax.init_state(own)
    theirs = program.init_state()
    jax.tree.map(np.testing.assert_array_equal, state, theirs)
    state, metrics = jax.jit(functools.partial(transformer_jax.train_step, own))(state, batch)
    theirs, expected = program.train_step(theirs, program.place(batch))
    np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-6)
    logits_BTV = jax.jit(transformer_jax.build_model(own).apply)({'params': state.params}, batch)
    assert logits_BTV.shape == (*batch.targets_BT.shape, own.data.vocab_size)


def test_a_seed_replaces_that_of_the_configuration():
    own = config(TRANSLATOR)
    one, other = (transformer_jax.init_state(own, seed).rng for seed in (0, 1))
    assert (one != other).any()


# --- A run ----------------------------------------------------------------------------------------


def test_a_run_translates(translator, call):
    texts = ['seven', 'twenty-four', '']
    found = translator.translate(texts)
    assert len(found) == 3
    assert found[-1] == ''
    assert translator.translate(texts, method='beam', beam=2) == translator.translate(
        texts, method='beam', beam=2
    )
    assert len(translator._by_decoding) == 2  # compiled once


def test_a_run_says_what_it_is(translator):
    assert translator.steps[0] in translator.metrics('validation')['step']
    assert translator.config.train.steps == 12
    assert translator.tokenizer.vocab_size == 90
    assert set(translator.params) >= {'encoder_0', 'decoder_1'}
    assert repr(translator).startswith("Run('")
    assert 'encoder_decoder' in repr(translator)


def test_a_checkpoint_is_chosen(translator):
    path = translator.workdir
    assert transformer_jax.open_run(path, 6, log=quiet).steps == (6,)
    assert transformer_jax.open_run(path, 'avg:2', log=quiet).steps == (12, 6)
    with pytest.raises(transformer_jax.ConfigError, match='there is no step 7'):
        transformer_jax.open_run(path, 7, log=quiet)
    with pytest.raises(transformer_jax.ConfigError, match='has no config'):
        transformer_jax.open_run(path / 'samples', log=quiet)


def test_a_mesh_is_chosen(translator):
    run = transformer_jax.open_run(translator.workdir, log=quiet, mesh='data=4,tensor=2')
    assert run.config.parallel.mesh.tensor == 2
    assert run.translate(['seven']) == translator.translate(['seven'])
    with pytest.raises(transformer_jax.ConfigError, match='there are 8'):
        transformer_jax.open_run(translator.workdir, log=quiet, mesh='fsdp=3')


def test_scores_are_those_of_the_command(translator):
    scores = translator.evaluate('validation', max_extra_tokens=2)
    assert scores['split'] == 'validation'
    assert 0 <= scores['accuracy'] <= 1
    assert scores['decode']['max_extra_tokens'] == 2
    assert (translator.workdir / 'evaluations.json').exists()


def test_metrics_are_a_table(translator):
    table = translator.metrics()
    assert set(table['split']) == {'train', 'validation'}
    assert translator.metrics('train')['step'].tolist() == list(range(1, 13))
    assert np.isfinite(translator.metrics('validation')['bleu']).all()
    assert '<table>' in table._repr_html_()


def test_a_resumed_training_opens_what_is_done(translator):
    again = transformer_jax.train(config(TRANSLATOR), translator.workdir, quiet)
    assert again.steps == translator.steps
    jax.tree.map(np.testing.assert_array_equal, again.params, translator.params)


@pytest.mark.parametrize('target', [None, 'sieben'])
def test_attention_of_a_translator(translator, target):
    weights = translator.attention_weights('twenty-four', target)
    S = 1 + len(translator.tokenizer.encode(['twenty-four'])[0])
    T = weights['cross'].shape[2]
    assert {stack: array.shape for stack, array in weights.items()} == {
        'encoder': (1, 2, S, S),
        'decoder': (2, 2, T, T),
        'cross': (2, 2, T, S),
    }
    if target:
        assert 1 + len(translator.tokenizer.encode([target])[0]) == T
    np.testing.assert_allclose(weights['cross'].sum(-1), 1, atol=1e-5)


def titles(figure):
    return [text.get_text() for text in figure.axes[0].texts if ' · head ' in text.get_text()]


def test_a_head_is_drawn(translator):
    figure = translator.plot_attention('seven', layer=1, head=0, stack='cross', target='sieben')
    assert titles(figure) == ['cross layer 1 · head 0']
    assert isinstance(figure, InlineFigure)
    assert figure._repr_png_().startswith(b'\x89PNG')
    assert len(titles(translator.plot_attention('seven', target='sieben'))) == (1 + 2 + 2) * 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'stack': 'corss'}, "stack='corss': did you mean 'cross'"),
        ({'layer': 1}, 'there is no encoder layer 1: it has 1, counted from 0'),
        ({'head': 2}, 'there is no encoder head 2'),
        ({'head': -1}, 'there is no encoder head -1'),
    ],
)
def test_what_cannot_be_drawn_is_refused(translator, options, message):
    with pytest.raises(transformer_jax.ConfigError, match=message):
        translator.plot_attention('seven', target='sieben', **options)


def test_probes_are_a_table(translator):
    table = translator.probes(batches=1)
    assert len(table) == (1 + 2 + 2) * 2
    assert table.columns[:4] == ('site', 'layer', 'head', 'entropy')
    assert np.isfinite(table['entropy']).all()


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda run: run.generate('six'), 'ConfigError', 'generate: .* which cannot; its commands'),
        (lambda run: run.classify(['six']), 'ConfigError', 'classify: .* which cannot'),
        (lambda run: run.translate('six'), 'DataError', 'is one string: give a list'),
        (lambda run: run.translate(['six'], bem=1), 'ConfigError', "decode.bem: .*mean 'beam'"),
        (lambda run: run.translate(['six'], beam=0), 'ConfigError', 'decode.beam'),
        (lambda run: run.evaluate('train'), 'ConfigError', "it is 'validation' or 'test'"),
        (lambda run: run.attention_weights(''), 'DataError', 'the text has 0 tokens'),
    ],
)
def test_what_a_run_cannot_do_is_one_line(translator, call, error, message):
    with pytest.raises(getattr(transformer_jax, error), match=message) as found:
        call(translator)
    assert '\n' not in str(found.value)


@pytest.mark.slow
def test_a_language_model_continues_a_prompt(language, call):
    text = language.generate('six', max_tokens=8, seed=3, temperature=0.7)
    assert text == language.generate('six', max_tokens=8, seed=3, temperature=0.7)
    path = f'--workdir={language.workdir}'
    options = ['--prompt=six', '--max_tokens=8', '--seed=3', '--temperature=0.7']
    assert call('generate', path, *options)[1] == f'six{text}\n'
    greedy = language.generate('six', max_tokens=4, method='greedy')
    assert greedy == language.generate('six', max_tokens=4, method='greedy', seed=5)
    assert isinstance(language.generate('six', max_tokens=4, method='beam', beam=2), str)


@pytest.mark.slow
def test_attention_of_a_language_model(language):
    weights = language.attention_weights('six')
    T = 1 + len(language.tokenizer.encode(['six'])[0])
    assert {stack: array.shape for stack, array in weights.items()} == {'decoder': (1, 2, T, T)}
    assert not weights['decoder'][..., np.triu(np.ones((T, T), bool), 1)].any()
    assert titles(language.plot_attention('six', head=1)) == ['decoder layer 0 · head 1']
    with pytest.raises(transformer_jax.ConfigError, match='has no target text'):
        language.attention_weights('six', 'sechs')


@pytest.mark.slow
def test_a_classifier_gives_classes(tmp_path, call):
    small = transformer_jax.load_config('configs/listops.py:small', CLASSIFIER)
    run = transformer_jax.train(small, tmp_path / 'run', quiet)
    texts = [run._trained.data.text('test').source[i] for i in (0, 1)]
    found = run.classify(texts)
    assert len(found) == 2
    assert all(0 < share <= 1 for _, share in found)
    S = 1 + len(run.tokenizer.encode(texts[:1])[0])
    weights = run.attention_weights(texts[0])
    assert weights['encoder'].shape == (1, 2, S + 1, S + 1)  # a token before the text
    assert len(titles(run.plot_attention(texts[0]))) == 2
    out = tmp_path / 'heads.png'
    command = ['attention', f'--workdir={run.workdir}', f'--out={out}']
    code, output, errors = call(*command, f'--text={texts[0]}')
    assert (code, output) == (0, ''), errors  # It writes no translation.
    assert errors.endswith(f'wrote {out}\n')
    assert out.read_bytes().startswith(b'\x89PNG')
    code, output, errors = call(*command, '--text=seven')
    assert (code, output) == (2, '')
    assert 'no symbol' in errors
    with pytest.raises(transformer_jax.DataError, match=r'texts\[1\]: an empty text'):
        run.classify(['1', ''])


@pytest.mark.slow
def test_seeds_side_by_side_give_the_first(tmp_path):
    changes = TINY | {'train.num_seeds': 2, 'train.seed': 5, 'train.steps': 2}
    run = transformer_jax.train(config(changes), tmp_path / 'group', quiet)
    assert run.workdir.name == '5'
    assert transformer_jax.open_run(tmp_path / 'group' / '6', log=quiet).config.train.seed == 6
    with pytest.raises(transformer_jax.ConfigError, match='holds a group of seeds: name one'):
        transformer_jax.open_run(tmp_path / 'group', log=quiet)


def test_flatten_names_every_override():
    """Every key that the reference lists can be overridden."""
    loaded = config({})
    values = flatten(loaded)
    assert transformer_jax.load_config(NUMBER_WORDS, values) == loaded
