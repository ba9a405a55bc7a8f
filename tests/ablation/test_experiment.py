"""Experiment files: what they may contain, and that each mistake gives a message that names it."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from transformer_jax.ablation import (
    Axis,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
    load_experiment,
)
from transformer_jax.ablation.checked_configs import checked_configs
from transformer_jax.ablation.experiment import slug
from transformer_jax.config import default_config
from transformer_jax.errors import ConfigError

LOSS = (Metric('loss'),)


def experiment(**changes) -> Experiment:
    return Experiment(
        **{'claim': '', 'base': default_config(), 'variants': {'base': {}}, 'metrics': LOSS}
        | changes
    )


# --- What it holds --------------------------------------------------------------------------------


def test_variants_are_the_base_with_keys_replaced():
    base = default_config()
    base.train.steps = 7
    configs = experiment(
        base=base,
        variants={
            'base': {},
            'h=1': {'model.num_heads': 1},
            'both': {'model.num_heads': 4, 'train.steps': 9},
        },
    ).configs()
    assert {
        name: (config.model.num_heads, config.train.steps) for name, config in configs.items()
    } == {'base': (8, 7), 'h=1': (1, 7), 'both': (4, 9)}
    assert base.model.num_heads == 8


def test_all_impossible_variants_are_listed_at_once():
    variants = {
        'good': {},
        'odd': {'model.num_heads': 3},
        'typo': {'model.nmu_heads': 3},
        'deep': {'model.num_heads.x': 1},
        'seeded': {'train.seed': 3},
    }
    with pytest.raises(ConfigError) as refusal:
        experiment(variants=variants).configs()
    title, *lines = str(refusal.value).split('\n  ')
    assert title == 'variants that cannot be:'
    assert [line.partition(':')[0] for line in lines] == ['odd', 'typo', 'deep', 'seeded']
    assert "did you mean 'num_heads'?" in lines[1]


def test_a_line_of_the_axis_is_the_reference_at_its_points():
    points = {f'{name} at {x}': (name, x) for x in (1, 2) for name in ('new', 'old')}
    variants = {name: {} for name in points}
    found = experiment(variants=variants, axis=Axis('x', points), reference='old').compared_with
    assert found == {
        'new at 1': 'old at 1',
        'old at 1': 'old at 1',
        'new at 2': 'old at 2',
        'old at 2': 'old at 2',
    }
    assert (
        experiment(variants=variants, axis=Axis('x', points), reference='old at 2').compared_with
        == 'old at 2'
    )
    assert experiment(variants=variants, axis=Axis('x', points)).compared_with == 'new at 1'


def test_names():
    assert (str(Metric('bleu')), str(Metric('accuracy', 'validation', length=40))) == (
        'test bleu',
        'validation accuracy at 40',
    )
    gradient = Metric('gradient_norm', 'validation', 'last', part='decoder_5/ffn')
    assert str(gradient) == 'validation gradient_norm of decoder_5/ffn'
    assert (Metric('perplexity').lower_is_better, Metric('bleu').lower_is_better) == (True, False)
    assert slug('N=2, d_model=256 (big)') == 'N-2-d_model-256-big'
    assert slug('../..') not in ('..', '../..', '')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'variants': {}}, 'needs variants and metrics'),
        ({'metrics': ()}, 'needs variants and metrics'),
        (
            {'metrics': (*LOSS, Metric('loss', checkpoint='last'))},
            'metrics need names of their own: test loss, test loss',
        ),
        ({'variants': {'base': 3}}, "variants['base']=3: it takes a mapping of text to any value"),
        ({'base': {}}, 'base={}: it takes ConfigDict'),
        ({'match': 'size'}, "match='size', it takes none, params, flops"),
        ({'reference': 'bsae'}, "reference='bsae' is no variant; these are: base"),
        (
            {'reference': 'odl', 'axis': Axis('x', {'base': ('old', 1)})},
            "reference='odl' is no variant or line of the axis; these are: base, old",
        ),
        (
            {
                'reference': 'old',
                'variants': {'base': {}, 'b': {}, 'c': {}},
                'axis': Axis('x', {'base': ('old', 1), 'b': ('new', 2)}),
            },
            "reference='old' has no point on the axis beside b, c",
        ),
        ({'axis': Axis('x', {'bsae': ('old', 1)})}, 'the axis has points of bsae: no variant'),
        ({'seeds': 0}, 'seeds=0 must be positive'),
        (
            {'published': (Published('paper', 'BLEU', 'test bleu', {'base': 1}),)},
            "'test bleu' is none of test loss",
        ),
        (
            {'published': (Published('paper', 'BLEU', 'test loss', {'big': 1}),)},
            'big is no variant',
        ),
    ],
)
def test_an_experiment_that_contradicts_itself(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(**changes)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'train'}, 'it takes validation, test'),
        ({'checkpoint': 'avg:0'}, 'it takes best, last, avg:N'),
        ({'length': 1}, 'length=1 of loss must be 2 or more'),
        ({'name': 'sink', 'length': 20}, 'length=20 of sink: it is measured on rows of all'),
        ({'name': 'gradient_norm', 'length': 20}, 'length=20 of gradient_norm: it is measured'),
        ({'part': 'ffn'}, "part='ffn' of loss: only gradient_norm has parts"),
    ],
)
def test_a_metric_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Metric(**{'name': 'loss'} | arguments)


# --- Files ----------------------------------------------------------------------------------------

GOOD = """from transformer_jax.ablation import Experiment, Metric, at_scale, config_file

def get_experiment(scale='small'):
    base = config_file('configs/number_words.py:en-fr')
    base.train.steps = at_scale(scale, {'small': 5, 'big': 50})
    return Experiment('', base, {'base': {}}, (Metric('loss'),))
"""


def test_a_file_and_its_scale(tmp_path):
    path = tmp_path / 'table.py'
    path.write_text(GOOD)
    assert (
        load_experiment(str(path)).base.train.steps,
        load_experiment(f'{path}:big').base.train.steps,
    ) == (5, 50)
    assert load_experiment(str(path)).base.data.target == 'fr'


@pytest.mark.parametrize(
    ('source', 'scale', 'message'),
    [
        (GOOD, ':smal', "table.py: there is no scale 'smal': did you mean 'small'?"),
        ('def get_experiment(:\n', '', 'table.py:1: invalid syntax'),
        ('x = 1\n', '', 'table.py: it defines no get_experiment'),
        (
            'def get_experiment():\n    return 3\n',
            '',
            'table.py: get_experiment returned int, not an Experiment',
        ),
        (
            'def get_experiment():\n    return 1 / 0\n',
            '',
            'table.py:2: ZeroDivisionError: division by zero',
        ),
        ('import nonesuch\n', '', "table.py:1: ModuleNotFoundError: No module named 'nonesuch'"),
        ("VARIANTS = {'a': {},\n 'b': {}, 'a': {1: 2}}\n", '', "table.py:1: 'a' is there twice"),
        (
            GOOD.replace('number_words', 'nonesuch'),
            '',
            'configs/nonesuch.py: there is no such file',
        ),
        ('\0', '', 'table.py'),
    ],
)
def test_mistakes_in_a_file(tmp_path, source, scale, message):
    (tmp_path / 'table.py').write_text(source)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(f'{tmp_path / "table.py"}{scale}')


def test_no_such_file():
    with pytest.raises(
        ConfigError, match=r'nope\.py: there is no such file; name one of experiments/'
    ):
        load_experiment('nope.py:small')
    with pytest.raises(ConfigError, match='there is no scale'):
        at_scale('x', {'small': 1})


def test_a_config_is_found_beside_the_package_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(config_file('configs/number_words.py:en-de'), ConfigDict)


SHIPPED = [
    path
    for path in sorted((Path(__file__).parents[2] / 'experiments').glob('*/*.py'))
    if 'def get_experiment(' in path.read_text()
]


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_shipped_experiments_are_possible_at_every_scale(path, monkeypatch):
    scales = []

    def recorded(scale, settings):
        scales.extend(settings)
        return at_scale(scale, settings)

    monkeypatch.setattr('transformer_jax.ablation.at_scale', recorded)
    assert checked_configs(load_experiment(str(path)))
    assert 'small' in scales
    for scale in dict.fromkeys(scales):
        assert checked_configs(load_experiment(f'{path}:{scale}')), scale


def test_a_changed_base_leaves_the_other_alone():
    experiment = Experiment('a claim', default_config(), {'base': {}}, (Metric('loss'),))
    steps = experiment.base.train.steps
    changed = experiment.with_base({'train.steps': steps + 7})
    assert (experiment.base.train.steps, changed.base.train.steps) == (steps, steps + 7)
