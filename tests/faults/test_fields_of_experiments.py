"""An experiment file whose report would fail is refused before anything is trained."""

import contextlib

import pytest
from helpers.tiny_ablation import METRICS, plan, table

from transformer_jax.ablation import Axis, Difference, Experiment, Metric, Published
from transformer_jax.config import default_config
from transformer_jax.errors import ConfigError

NAN, INF = float('nan'), float('inf')


def published(values, metric='test loss', **changes):
    given = {'source': 'paper', 'measure': 'BLEU', 'metric': metric, 'values': values}
    return {'published': (Published(**given | changes),)}


def axis(points, label='x'):
    return {'axis': Axis(label, points)}


def differences(*rows):
    return {'differences': tuple(Difference(*row) for row in rows)}


# What an experiment with the variants a and b is given, by a function since some fail when made ->
# what the error says.
WRONG = [
    (lambda: published({'a': None}), "values['a']=None: it takes a finite number"),
    (lambda: published({'a': NAN}), "values['a']=nan: it takes a finite number"),
    (lambda: published({'a': INF}), "values['a']=inf: it takes a finite number"),
    (lambda: published({'a': '12'}), "values['a']='12': it takes a finite number"),
    (lambda: published({'a': True}), "values['a']=True: it takes a finite number"),
    (lambda: published({'a': 10**400}), "values['a']=(about 10^400): it takes a finite number"),
    (lambda: published({3: 1.0}), 'the key 3 of values=3: it takes text'),
    (lambda: published(['a']), "values=['a']: it takes a mapping of text to a finite number"),
    (lambda: published({'a': 1}, source=None), 'source=None: it takes text'),
    (lambda: published({'a': 1}, measure=3), 'measure=3: it takes text'),
    (lambda: published({'a': 1}, metric=METRICS[0]), 'metric=Metric('),
    (lambda: published({'a': 1}, lower_is_better='yes'), "lower_is_better='yes': it takes True"),
    (lambda: axis({'a': ('line', '3')}), "points['a'][1]='3': it takes a finite number"),
    (lambda: axis({'a': ('line', NAN)}), "points['a'][1]=nan: it takes a finite number"),
    (lambda: axis({'a': ('line', INF)}), "points['a'][1]=inf: it takes a finite number"),
    (lambda: axis({'a': (1, 2)}), "points['a'][0]=1: it takes text"),
    (lambda: axis({'a': ('line',)}), "points['a']=('line',): it takes (text, a finite number)"),
    (lambda: axis({'a': 3}), "points['a']=3: it takes (text, a finite number)"),
    (lambda: axis(['a']), "points=['a']: it takes a mapping of text to"),
    (lambda: axis({}, label=None), 'label=None: it takes text'),
    (lambda: {'axis': {'a': 1}}, "axis={'a': 1}: it takes Axis or None"),
    (lambda: {'claim': None}, 'claim=None: it takes text'),
    (lambda: {'claim': ('one', 'two')}, "claim=('one', 'two'): it takes text"),
    (lambda: {'seeds': 2.5}, 'seeds=2.5: it takes a whole number'),
    (lambda: {'seeds': True}, 'seeds=True: it takes a whole number'),
    (lambda: {'seeds': '3'}, "seeds='3': it takes a whole number"),
    (lambda: {'reference': None}, 'reference=None: it takes text'),
    (lambda: {'match': None}, 'match=None: it takes text'),
    (lambda: {'variants': ['a', 'b']}, "variants=['a', 'b']: it takes a mapping"),
    (lambda: {'variants': {'a': {}, 3: {}}}, 'the key 3 of variants=3: it takes text'),
    (lambda: {'variants': {'a': {7: 3}}}, "the key 7 of variants['a']=7: it takes text"),
    (lambda: {'variants': {'a': None}}, "variants['a']=None: it takes a mapping"),
    (lambda: {'base': {}}, 'base={}: it takes ConfigDict'),
    (lambda: {'metrics': (Metric('loss'), 'bleu')}, "metrics[1]='bleu': it takes Metric"),
    (lambda: {'metrics': (Metric(3),)}, 'name=3: it takes text'),
    (lambda: {'metrics': (Metric('loss', length=2.0),)}, 'length=2.0: it takes a whole number'),
    (lambda: {'metrics': (Metric('loss', checkpoint=None),)}, 'checkpoint=None: it takes text'),
    (lambda: differences(('data', '', 'here')), "Difference 'data': paper is empty"),
    (lambda: differences(('data', 'WMT', ' ')), "Difference 'data': here is empty"),
    (lambda: differences((' ', 'WMT', 'here')), "Difference ' ': what is empty"),
    (lambda: differences(('data', 3, 'here')), 'paper=3: it takes text'),
    (lambda: differences(('data', 'WMT', 'WMT')), 'paper and here say the same'),
    (lambda: differences(*2 * [('data', 'WMT', 'Multi30k')]), "differences has 'data' twice"),
    (lambda: {'differences': ('data',)}, "differences[0]='data': it takes Difference"),
    (
        lambda: {'reference': 'old', **axis({'a': ('old', 1), 'b': ('old', 1)})},
        "reference='old' has several points of the axis at 1",
    ),
]


@pytest.mark.fault('experiment files')
@pytest.mark.parametrize(('changes', 'said'), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_field_is_named(changes, said):
    given = {'claim': '', 'base': default_config(), 'metrics': (Metric('loss'),)}
    with pytest.raises(ConfigError) as caught:
        Experiment(**given | {'variants': {'a': {}, 'b': {}}} | changes())
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changes',
    [
        published({'a': 3}),
        published({'a': -0.5, 'b': 1e-9}),
        published({}),
        axis({'a': ('one', 1), 'b': ['one', 2.5]}),
        axis({'a': ('one', 1), 'b': ('one', 1)}),  # no line of it is the reference
        {'metrics': [Metric('loss')]},
        {'seeds': 7},
        differences(('data', 'WMT 2014', 'Multi30k')),
    ],
)
def test_a_right_field_is_taken(changes):
    given = {'claim': '', 'base': default_config(), 'metrics': (Metric('loss'),)}
    Experiment(**given | {'variants': {'a': {}, 'b': {}}} | changes)


@pytest.mark.parametrize(
    ('overrides', 'said'),
    [
        ({'model': {'d_ff': 64}}, "model={'d_ff': 64}: it is a section; write 'model.d_ff': 64"),
        ({'model': {}}, "write 'model.KEY': value"),
        (
            {'parallel.mesh': 3},
            "parallel.mesh=3: it is a section; write 'parallel.mesh.KEY': value",
        ),
    ],
)
def test_overrides_are_written_with_dots(overrides, said):
    with pytest.raises(ConfigError) as caught:
        table({'base': overrides}).configs()
    assert said in str(caught.value)
    assert 'missing configuration key' not in str(caught.value)


@pytest.mark.parametrize(
    ('first', 'seeds', 'refused'),
    [(2**32 - 1, 1, False), (2**32 - 1, 3, True), (2**32 - 3, 3, False), (2**32 - 3, 4, True)],
)
def test_the_last_seed_is_in_range(tmp_path, first, seeds, refused):
    said = pytest.raises(ConfigError, match=rf'{seeds} seeds count up from {first}, lower that')
    with said if refused else contextlib.nullcontext():
        plan(tmp_path, {'base': {}}, seeds=seeds, **{'train.seed': first})


def test_a_name_with_a_comma_is_quoted(tmp_path):
    variants = {'T, big': {}, 'small': {'model.d_ff': 8}}
    with pytest.raises(ConfigError, match="""a comma is quoted twice: --only='"NAME"'"""):
        plan(tmp_path, variants, only=('T', 'big'))
    assert len(plan(tmp_path, variants, only=('T, big',)).trials) == 2
