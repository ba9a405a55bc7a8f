"""Classes of other packages in specs: found, refused by name, printed back, trained and loaded."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.support import events, experiment, quiet
from helpers.tiny_ablation import plan
from laws.contract import CHECKS, Case, applies, site

from transformer_jax import outside, spec
from transformer_jax.ablation.runner import ablate
from transformer_jax.attention import KINDS
from transformer_jax.attention.masks import MASKS
from transformer_jax.attention.normalizers import NORMALIZERS
from transformer_jax.cli import main
from transformer_jax.config import resolve
from transformer_jax.config.resolve import SPECS
from transformer_jax.data.tasks import TASKS
from transformer_jax.errors import ConfigError
from transformer_jax.layers.feed_forward import DENSE, FFNS
from transformer_jax.optim.optimizers import OPTIMIZERS
from transformer_jax.optim.schedules import SCHEDULES
from transformer_jax.positions import POSITIONS
from transformer_jax.training.train import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'tutorials' / 'add-an-attention-kind.md').read_text()
COSINE = PAGE.partition('```python\n')[2].partition('```')[0]
OTHERS = """
    import dataclasses
    from transformer_jax.attention.kinds.softmax import Softmax
    from transformer_jax.attention.masks import Window
    from transformer_jax.optim.schedules import SCHEDULES

    @dataclasses.dataclass(frozen=True)
    class Narrow(Window):
        '''A mask.'''

    @dataclasses.dataclass(frozen=True)
    class Slow(SCHEDULES['constant']):
        '''A schedule.'''

    @dataclasses.dataclass(frozen=True)
    class Made(Softmax):
        '''A kind with a default that is made.'''
        sizes: tuple[int, ...] = dataclasses.field(default_factory=tuple)

    @dataclasses.dataclass(frozen=True)
    class Breaks(Softmax):
        '''A kind that cannot be made.'''
        def __post_init__(self):
            raise RuntimeError('no such device')

    @dataclasses.dataclass(frozen=True)
    class Confused(Softmax):
        '''A kind that cannot be made either.'''
        def __post_init__(self):
            len(3)

    class Plain(Softmax):
        '''No dataclass of its own, but one of its base.'''

    @dataclasses.dataclass
    class Thawed:
        '''No kind.'''

    def function():
        '''No class.'''
"""


@pytest.fixture
def my_kinds(tmp_path, monkeypatch):
    """Modules of a user, in the current folder."""
    folder = tmp_path / 'my_kinds'
    folder.mkdir()
    (folder / '__init__.py').write_text('')
    (folder / 'cosine.py').write_text(COSINE)
    (folder / 'others.py').write_text(textwrap.dedent(OTHERS))
    (folder / 'broken.py').write_text('1 / 0\n')
    (folder / 'exits.py').write_text('import sys\nsys.exit(7)\n')
    (folder / 'needy.py').write_text('import not_installed_anywhere\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(outside, '_modules', set())
    yield tmp_path
    for name in [name for name in sys.modules if name.partition('.')[0] == 'my_kinds']:
        del sys.modules[name]


@pytest.mark.parametrize(
    ('text', 'table'),
    [
        ('my_kinds.cosine.Cosine', KINDS),
        ('my_kinds.cosine.Cosine(mask=window(size=64), temperature=5.0)', KINDS),
        ('softmax(mask=my_kinds.others.Narrow(size=3) & prefix(length=4))', KINDS),
        ('my_kinds.others.Narrow(size=8) | window(size=2)', MASKS),
        ('my_kinds.others.Slow', SCHEDULES),
        ('my_kinds.others.Made', KINDS),
        ('my_kinds.others.Made(sizes=(3, 4))', KINDS),
    ],
)
def test_a_class_of_another_package_is_read_and_printed(my_kinds, text, table):
    value = spec.parse(text, table, 'key')
    assert spec.text(value, table) == text
    assert spec.parse(spec.text(value, table), table, 'key') == value
    assert list(outside.sources()) in (['my_kinds.cosine'], ['my_kinds.others'])


REFUSED = {
    'no_such_module.Cosine': 'names the module no_such_module, which is not found: install it',
    'my_kinds.no_such.Cosine': 'names the module my_kinds.no_such, which is not found',
    'my_kinds.cosine.NoSuch': 'but the module my_kinds.cosine has no NoSuch',
    'my_kinds.Cosine': 'but the module my_kinds has no Cosine',
    'my_kinds.cosine.unit': 'which is no Attention',
    'my_kinds.others.function': 'which is no Attention',
    'my_kinds.others.Thawed': 'which is no Attention',
    'my_kinds.others.Narrow(4)': 'which is no Attention',
    'my_kinds.broken.Cosine': 'fails: ZeroDivisionError: division by zero',
    'my_kinds.exits.Cosine': 'fails: SystemExit: 7',
    'my_kinds.others.Breaks': 'fails to make my_kinds.others.Breaks: RuntimeError: no such device',
    'my_kinds.others.Confused': 'fails to make my_kinds.others.Confused: TypeError: ',
    'my_kinds.needy.Cosine': 'which needs the module not_installed_anywhere',
    'my_kinds.cosine.Cosine(temprature=5)': "unknown argument 'temprature': did you mean",
    'my_kinds.cosine.Cosine(temperature=warm)': 'gives my_kinds.cosine.Cosine.temperature',
    'my_kinds.cosine.Cosine(5, 6, 7, 8, 9, 10)': 'it takes',
    'os.system': 'which is no Attention',
    '(1 + 2).real': 'is no spec',
    'my_kinds.cosine["Cosine"]': 'is no spec',
    '"a".b.C': 'is no spec',
}


@pytest.mark.parametrize('text', REFUSED)
def test_a_class_that_cannot_be_is_refused_by_name(my_kinds, text):
    with pytest.raises(ConfigError) as caught:
        spec.parse(text, KINDS, 'model.attention')
    assert REFUSED[text] in str(caught.value)
    assert str(caught.value).startswith('model.attention=')


@pytest.mark.parametrize(
    ('table', 'base'),
    [
        (KINDS, 'Attention'),
        (MASKS, 'Mask'),
        (NORMALIZERS, 'Normalizer'),
        (POSITIONS, 'Position'),
        (OPTIMIZERS, 'Optimizer'),
        (SCHEDULES, 'Schedule'),
        (TASKS, 'Task'),
        (FFNS, 'FeedForwardKind'),
        (DENSE, 'DenseKind'),
    ],
)
def test_the_base_of_a_table_is_its_own(table, base):
    assert outside.common_base(table).__name__ == base


def test_no_table_takes_a_class_of_another(my_kinds):
    tables = {'model.attention': KINDS, **SPECS}
    for row in [*KINDS.values(), *FFNS.values(), *POSITIONS.values()]:
        fields = dataclasses.fields(row)
        tables |= {f'{row}.{f.name}': f.metadata['table'] for f in fields if 'table' in f.metadata}
    for key, table in tables.items():
        if outside.common_base(table).__name__ not in ('Attention', 'Mask'):
            for name in ('my_kinds.cosine.Cosine', 'my_kinds.others.Narrow(size=3)'):
                with pytest.raises(ConfigError, match='which is no '):
                    spec.parse(name, table, key)


def test_a_kind_of_another_package_is_held_to_the_contract(my_kinds):
    case = Case('my_kinds.cosine.Cosine')
    capabilities = spec.parse(case.attention, KINDS, 'attention').supports()
    check = next(check for check in CHECKS if applies(check, 'decoder', capabilities))
    check(site(case, 'decoder'))


@pytest.mark.slow
def test_pytest_holds_it_to_the_contract(my_kinds):
    command = [
        *(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'),
        *(f'{ROOT}/tests/laws/test_contract.py', '--kind=my_kinds.cosine.Cosine'),
        *('-k', 'Cosine and decoder and causality'),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert ' passed' in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_with_it_is_trained_loaded_and_decoded(my_kinds, capsys):
    config = experiment(
        model__attention='my_kinds.cosine.Cosine(temperature=5)',
        model__position='rope',
        train__steps=4,
    )
    kind = resolve(config).architecture.attention_at('decoder', 0).kind
    assert kind.temperature == 5
    workdir = my_kinds / 'w'
    train(config, workdir, quiet)
    assert len(events(workdir, 'train')) == 4
    [record] = json.loads((workdir / 'run.json').read_text())
    assert list(record['modules']) == ['my_kinds.cosine']
    assert main(['evaluate', f'--workdir={workdir}', '--json']) == 0
    assert main(['inspect', f'--workdir={workdir}']) == 0
    assert 'step 4 of 4' in capsys.readouterr().out


@pytest.mark.rare
def test_an_ablation_and_its_report_name_it(my_kinds, capsys):
    spec_text = 'my_kinds.cosine.Cosine(temperature=5.0)'
    variants = {'base': {}, 'cosine': {'model.attention': spec_text, 'model.position': 'rope'}}
    root = my_kinds / 'root'
    ablate(plan(root, variants, seeds=1), quiet)
    results = json.loads((root / 'results.json').read_text())
    assert [run['folder'] for run in results['runs']] == ['base', 'cosine']
    assert results['missing'] == []
    stored = json.loads((root / 'cosine' / '0' / 'config.json').read_text())
    assert stored['model']['attention'] == spec_text
    assert main(['report', str(root)]) == 0, capsys.readouterr().err
    for name in ('report.md', 'report.html'):
        text = (root / 'report' / name).read_text()
        assert 'cosine' in text
        assert spec_text in text
