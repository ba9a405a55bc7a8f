"""Workdirs that older versions wrote: whatever today's version reads in them is what theirs read.

`workdirs/v1/README.md` says what they are; `expected.json` holds what the version that wrote them
printed. All tests work on copies.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
from helpers.support import fingerprint, quiet

import transformer_jax
from transformer_jax.ablation.results import load_results
from transformer_jax.config import from_dict
from transformer_jax.errors import ConfigError
from transformer_jax.renames import RENAMED_KEYS
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train import train

ROOT = Path(__file__).parents[2]
OLD = ROOT / 'tests' / 'config' / 'workdirs' / 'v1'
EXPECTED = {
    f'{path.parent.name}/{workdir}': expected
    for path in sorted(OLD.glob('*/expected.json'))
    for workdir, expected in json.loads(path.read_text()).items()
}
TRANSLATION, LANGUAGE = 'translation/workdir', 'language/workdir'
SEED_GROUP = 'seed_group/workdir'  # which holds the runs 3 and 4
# What the old version's experiment file says, in today's words.
TODAY = {
    'transformer_jax.experiment': 'transformer_jax.ablation',
    'normaliser=': 'normalizer=',
    'first(1)': 'global_tokens(1)',
    'paper(': 'noam(',
    'falling=': 'lower_is_better=',
    **RENAMED_KEYS,
}

every_workdir = pytest.mark.parametrize('name', EXPECTED)


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    """A copy of all old workdirs, which evaluations may add files to."""
    return shutil.copytree(OLD, tmp_path_factory.mktemp('old') / 'v1')


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    """The text of `language` is found by a path relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


def cases(kind):
    return [
        pytest.param(name, entry, id=f'{name}-{entry.get("split", kind)}')
        for name, expected in EXPECTED.items()
        for entry in (
            expected.get(kind, []) if kind == 'evaluate' else filter(None, [expected.get(kind)])
        )
    ]


def test_there_are_workdirs_of_all_sorts():
    assert {name.partition('/')[0] for name in EXPECTED} == {
        'ablation',
        'language',
        'seed_group',
        'translation',
    }


@every_workdir
def test_inspect_prints_the_same_hash(name, old, call):
    code, output, error = call('inspect', f'--workdir={old / name}')
    assert (code, output.splitlines()[1:]) == (0, EXPECTED[name]['inspect']), error


def without_end(scores):
    """Correct what counted an end of sentence, as a word and a byte, of a contiguous text."""
    nll = scores['loss'] * scores['tokens']
    words = round(nll / math.log(scores['word_perplexity'])) - 1
    size = round(nll / math.log(2) / scores['bits_per_byte']) - 1
    return {
        'word_perplexity': math.exp(nll / words),
        'bits_per_byte': nll / math.log(2) / size,
    }


@pytest.mark.parametrize(('name', 'expected'), cases('evaluate'))
def test_scores_are_the_same(name, expected, old, call):
    options = [f'--{key}={expected[key]}' for key in ('split', 'checkpoint')]
    code, output, error = call('evaluate', f'--workdir={old / name}', '--json', *options)
    assert code == 0, error
    scores = json.loads(output)
    del scores['seconds'], scores['decode'], scores['split_sha256']  # the last is new
    if expected['task'].startswith('text_file'):
        expected = expected | without_end(expected)
    assert scores.keys() == expected.keys()
    for key, value in expected.items():
        numeric = isinstance(value, float) or key.endswith('_interval')
        assert scores[key] == (pytest.approx(value, rel=1e-5) if numeric else value), key
    samples = EXPECTED[name].get('samples', {'file': '', 'first': []})
    if samples['file'].startswith(f'samples/{expected["split"]}-{expected["checkpoint"]}'):
        lines = (old / name / samples['file']).read_text().splitlines()
        assert lines[: len(samples['first'])] == samples['first']


@pytest.mark.parametrize(('name', 'expected'), cases('translate'))
def test_translations_are_the_same(name, expected, old):
    run = transformer_jax.open_run(old / name, expected['checkpoint'], quiet)
    assert run.translate(expected['input']) == expected['output']


@pytest.mark.parametrize(('name', 'expected'), cases('generate'))
def test_continuations_are_the_same(name, expected, old):
    run = transformer_jax.open_run(old / name, expected['checkpoint'], quiet)
    text = run.generate(expected['prompt'], expected['max_tokens'], method=expected['method'])
    assert f'{expected["prompt"]}{text}\n' == expected['output']


def test_metrics_are_read(old):
    run = transformer_jax.open_run(old / TRANSLATION, log=quiet)
    assert run.metrics('train')['step'].tolist() == [20, 40, 60]
    assert run.metrics('validation')['bleu'].shape == (1,)


# --- Training on ----------------------------------------------------------------------------------


def stored(workdir):
    return from_dict(Workdir(workdir).read_config())


@pytest.mark.parametrize(
    ('name', 'runs'), [(TRANSLATION, ['.']), (LANGUAGE, ['.']), (SEED_GROUP, ['3', '4'])]
)
def test_a_finished_run_is_done_at_once(name, runs, tmp_path):
    workdir = shutil.copytree(OLD / name, tmp_path / 'run')
    before = {path: path.read_text() for path in workdir.rglob('metrics.jsonl')}
    train(stored(workdir), workdir, quiet)
    assert {path: path.read_text() for path in workdir.rglob('metrics.jsonl')} == before
    for run in runs:
        expected = EXPECTED[name if run == '.' else f'{name}/{run}']
        assert fingerprint(workdir / run) == expected['inspect'][-1]
        assert 'version' in json.loads((workdir / run / 'config.json').read_text())


def test_a_run_goes_on_from_an_old_checkpoint(tmp_path):
    """From step 150 to 300 of 300; the validation loss there is that of the version before."""
    workdir = shutil.copytree(OLD / LANGUAGE, tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '300')
    lines = []
    train(stored(workdir), workdir, lines.append)
    assert 'resumed after step 150' in lines
    [loss] = (
        event['loss']
        for event in map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
        if (event['split'], event['step']) == ('validation', 300)
    )
    [expected] = [e for e in EXPECTED[LANGUAGE]['evaluate'] if e['steps'] == [300]]
    assert loss == pytest.approx(expected['loss'], rel=0.02)


def test_another_configuration_is_refused(tmp_path):
    workdir = shutil.copytree(OLD / TRANSLATION, tmp_path / 'run')
    more = json.loads(json.dumps(Workdir(workdir).read_config()))
    more['train']['batch_tokens'] = 80
    with pytest.raises(ConfigError, match=r'another configuration .train.batch_tokens: \d+ -> 80'):
        train(from_dict(more), workdir, quiet)
    assert fingerprint(workdir) == EXPECTED[TRANSLATION]['inspect'][-1]


# --- Ablations ------------------------------------------------------------------------------------


def test_results_are_read(old):
    for path in (old / 'ablation' / 'root', old / 'ablation' / 'root' / 'results.json'):
        results = load_results(path)
        assert not results['missing']
        assert len(results['runs']) == 4
        for run in results['runs']:
            [expected] = EXPECTED[f'ablation/root/{run["folder"]}/{run["seed"]}']['evaluate'][:1]
            assert run['scores']['test loss'] == pytest.approx(expected['loss'], rel=1e-5)
        loss, exact, *_ = results['experiment']['metrics']
        assert (loss['lower_is_better'], exact['lower_is_better']) == (True, False)
        [paper] = results['experiment']['published']
        assert paper['lower_is_better'] is True


@pytest.mark.parametrize('path', ['ablation/root', 'ablation/root/results.json'])
def test_report_works(path, old, call, tmp_path):
    code, _, error = call('report', str(old / path), f'--out={tmp_path / "report"}')
    assert code == 0, error
    page = (tmp_path / 'report' / 'report.md').read_text()
    assert 'A window with the first token is as good as full attention.' in page
    assert {'full', 'window'} <= set(page.replace('|', ' ').split())


def test_an_old_ablation_is_done(old, call, tmp_path):
    text = (OLD / 'ablation' / 'experiment.py.txt').read_text()
    for before, now in TODAY.items():
        text = text.replace(before, now)
    (tmp_path / 'experiment.py').write_text(text)
    root = shutil.copytree(OLD / 'ablation' / 'root', tmp_path / 'root')
    before = {path: path.read_bytes() for path in root.rglob('result.json')}
    code, output, error = call('ablate', str(tmp_path / 'experiment.py'), f'--root={root}')
    assert code == 0, error
    assert '4 of 4' in output + error
    assert {path: path.read_bytes() for path in root.rglob('result.json')} == before
