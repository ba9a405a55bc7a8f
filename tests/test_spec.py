"""Spec strings: a printed spec is read back, and any text gives a value or one clear message."""

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax import spec
from transformer_jax.attention import KINDS, mask_base
from transformer_jax.attention import masks as mask_lib
from transformer_jax.attention.normalizers import NORMALIZERS
from transformer_jax.config.resolve import SPECS
from transformer_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Window:
    """A class with a required argument that is checked."""

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f'size={self.size} must be positive')


@dataclasses.dataclass(frozen=True)
class Full:
    """A class without arguments: its field is not one."""

    width: int = dataclasses.field(default=0, init=False)


MASKS = {'window': Window, 'full': Full}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class with an argument of every type."""

    mask: object = spec.nested(MASKS, Full())
    theta: float = 1e4
    heads: int = 8
    tied: bool = False
    name: str = 'elu'
    lengths: tuple[int, ...] = (16, 32)
    scale: float | str = 'rsqrt'
    gate: str = dataclasses.field(default='none', kw_only=True)
    labels: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


KIND = {'kind': Kind, 'other': Full}

kinds = st.builds(
    Kind,
    mask=st.one_of(st.just(Full()), st.builds(Window, st.integers(min_value=1))),
    theta=st.floats(allow_nan=False, allow_infinity=False),
    heads=st.integers(),
    tied=st.booleans(),
    name=st.text(),
    lengths=st.lists(st.integers()).map(tuple),
    scale=st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    gate=st.text() | st.sampled_from(['both', 'None', 'lambda', 'print', 'ﬁ', '_', 'x1']),
    labels=st.lists(st.text() | st.sampled_from(['a', 'True', 'lc.norm'])).map(tuple),
)
formulas = st.recursive(
    st.just(mask_lib.Full()) | st.builds(mask_lib.Window, st.integers(1, 99)),
    lambda inner: st.builds(mask_base.And, inner, inner) | st.builds(mask_base.Or, inner, inner),
    max_leaves=8,
)


@given(kinds)
def test_a_printed_spec_is_read_back(kind):
    assert spec.parse(spec.text(kind, KIND), KIND, 'key') == kind


def test_defaults_are_not_printed():
    assert spec.text(Kind(), KIND) == 'kind'
    assert (
        spec.text(Kind(mask=Window(64), theta=2.0), KIND) == 'kind(mask=window(size=64), theta=2.0)'
    )


@pytest.mark.parametrize('key', sorted(SPECS))
def test_the_tables_of_the_package_print_and_read(key):
    for name, cls in SPECS[key].items():
        required = [
            f for f in dataclasses.fields(cls) if f.init and f.default is dataclasses.MISSING
        ]
        if not required:
            assert spec.text(spec.parse(name, SPECS[key], key), SPECS[key]) == name
    assert spec.text(spec.parse('softmax()', KINDS, 'model.attention'), KINDS) == 'softmax'


@pytest.mark.parametrize('name', NORMALIZERS)
def test_normalizers_are_named_within_a_kind(name):
    kind = spec.parse(f'softmax(normalizer={name})', KINDS, 'model.attention')
    assert type(kind.normalizer) is NORMALIZERS[name]
    assert spec.text(kind, KINDS) == (
        'softmax' if name == 'softmax' else f'softmax(normalizer={name})'
    )


def test_positional_and_named_arguments_mean_the_same():
    assert (
        spec.parse(' window(64) ', MASKS, 'key')
        == spec.parse('window(size=64)', MASKS, 'key')
        == Window(64)
    )


def test_an_integer_will_do_for_a_float():
    theta = spec.parse('kind(theta=3)', KIND, 'key').theta
    assert theta == 3.0
    assert type(theta) is float


def test_a_union_takes_any_of_its_types():
    for text, scale in (('2', 2.0), ('0.5', 0.5), ("'none'", 'none')):
        read = spec.parse(f'kind(scale={text})', KIND, 'key').scale
        assert read == scale
        assert type(read) is type(scale)


# --- Strings, with and without quotes -------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('kind(name=relu)', Kind(name='relu')),
        ("kind(name='relu')", Kind(name='relu')),
        ('kind(scale=none)', Kind(scale='none')),
        ("kind(scale='none')", Kind(scale='none')),
        ('kind(full, 1, 2, True, relu)', Kind(Full(), 1, 2, True, 'relu')),
        ('kind(labels=(a, "lc.norm", b))', Kind(labels=('a', 'lc.norm', 'b'))),
        ('kind(labels=[a])', Kind(labels=('a',))),
    ],
)
def test_a_string_that_is_a_name_needs_no_quotes(text, value):
    assert spec.parse(text, KIND, 'key') == value


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (Kind(name='relu'), 'kind(name=relu)'),
        (Kind(scale='none'), 'kind(scale=none)'),
        (Kind(name='lc.norm.tok'), "kind(name='lc.norm.tok')"),
        (Kind(name='None'), "kind(name='None')"),
        (Kind(name='True'), "kind(name='True')"),
        (Kind(name='lambda'), "kind(name='lambda')"),
        (Kind(name='5'), "kind(name='5')"),
        (Kind(name=''), "kind(name='')"),
        (Kind(name='ﬁ'), "kind(name='ﬁ')"),  # Python reads the name ﬁ as 'fi'
        (Kind(labels=('a',)), 'kind(labels=(a,))'),
        (Kind(labels=('a', 'b c')), "kind(labels=(a, 'b c'))"),
    ],
)
def test_a_string_is_printed_without_quotes_where_it_is_a_name(value, text):
    assert spec.text(value, KIND) == text
    assert spec.parse(text, KIND, 'key') == value


@pytest.mark.parametrize(
    ('key', 'bare', 'quoted'),
    [
        ('model.attention', 'softmax(talking=both)', "softmax(talking='both')"),
        ('model.attention', 'softmax(scale=none)', "softmax(scale='none')"),
        ('model.attention', 'softmax(gate=element)', "softmax(gate='element')"),
        ('model.attention', 'synthesizer(form=random)', "synthesizer(form='random')"),
        ('model.position', 'kerple(form=power)', "kerple(form='power')"),
        ('model.rnn', 'lstm(attention=none)', "lstm(attention='none')"),
        ('model.position', 'rope(pairs=half)', "rope(pairs='half')"),
        ('data.task', 'multi30k(version=raw)', "multi30k(version='raw')"),
        (
            'data.task',
            'tfds_classification(names=(no, yes))',
            "tfds_classification(names=('no', 'yes'))",
        ),
    ],
)
def test_both_spellings_of_a_string_mean_the_same_in_the_tables_of_the_package(key, bare, quoted):
    table = {'model.attention': KINDS, **SPECS}[key]
    value = spec.parse(bare, table, key)
    assert value == spec.parse(quoted, table, key)
    assert spec.parse(spec.text(value, table), table, key) == value
    assert spec.text(value, table) in (bare, bare.partition('(')[0])  # a default is left out


# --- Masks combine with & and | -------------------------------------------------------------------


def mask(text):
    return spec.parse(text, mask_lib.MASKS, 'mask')


@given(formulas)
def test_a_printed_formula_is_read_back(formula):
    assert mask(spec.text(formula, mask_lib.MASKS)) == formula
    kind = KINDS['softmax'](mask=formula)
    assert spec.parse(spec.text(kind, KINDS), KINDS, 'key') == kind


@pytest.mark.parametrize(
    'text',
    [
        'full & full | full',
        'full | full & full',
        '(full | full) & full',
        'full & (full | full)',
        'full & full & full',
        'full & (full & full)',
        'full | full | full',
        'full | (full | full)',
    ],
)
def test_a_formula_is_printed_with_no_more_parentheses_than_it_needs(text):
    assert spec.text(mask(text), mask_lib.MASKS) == text


def test_and_binds_more_than_or_and_both_to_the_left():
    a, b, c = (mask_lib.Window(size) for size in (1, 2, 3))
    assert mask('window(1) | window(2) & window(3)') == mask_base.Or(a, mask_base.And(b, c))
    assert mask('window(1) & window(2) & window(3)') == mask_base.And(mask_base.And(a, b), c)


# --- Patterns of layers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('full', [Full()]),
        ('full,', [Full()]),
        ('(full, full)', 2 * [Full()]),
        ('3*full', 3 * [Full()]),
        ('2*window(3), full', [Window(3), Window(3), Full()]),
        (' full, 2 * window(size=1)', [Full(), Window(1), Window(1)]),
    ],
)
def test_a_pattern_counts_its_layers(text, expected):
    assert spec.parse_pattern(text, MASKS, 'key') == tuple(expected)


BAD_PATTERNS = {  # text: (part of the message, column of the mark)
    '0*full': ('is no pattern: write 3*name for three layers of it', 0),
    'full, -1*full': ('is no pattern', 6),
    'x*full': ('is no pattern', 0),
    'True*full': ('is no pattern', 0),
    '1.5*full': ('is no pattern', 0),
    'full*2': ('is no pattern', 0),
    '2*3*full': ('is no pattern', 0),
    'full & full': ('combines what cannot be combined', 0),
    'window(1), full | full': ('combines what cannot be combined', 11),
    '2*fulll': ("names the unknown 'fulll': did you mean 'full'?", 2),
    'full, 2*window(0)': ('is invalid: size=0 must be positive', 8),
    '2*full full': ('is no spec', None),
    '()': ('is no pattern: it names no layer', 0),
}


@pytest.mark.parametrize('text', BAD_PATTERNS)
def test_a_bad_pattern_is_refused_with_its_place_marked(text):
    message, column = BAD_PATTERNS[text]
    with pytest.raises(ConfigError) as caught:
        spec.parse_pattern(text, MASKS, 'model.x')
    refusal_is_marked(str(caught.value), text, message, column)


def test_kinds_do_not_combine():
    with pytest.raises(ConfigError, match='combines what cannot be combined'):
        spec.parse_pattern('softmax & softmax', KINDS, 'model.attention')


# --- What is no spec ------------------------------------------------------------------------------

BAD = {  # text: (part of the message, column of the mark)
    'kind(': ('is no spec', None),
    '': ('is no spec', 0),
    'kind.x': ('names the module kind, which is not found', 0),
    'kind[x]': ('is no spec: write name or name(argument=value, …)', 0),
    'kind + kind': ('is no spec: write name', 0),
    'kimd': ("names the unknown 'kimd': did you mean 'kind'?", 0),
    'zzz': ("names the unknown 'zzz': valid: kind, other", 0),
    'kind(mask=windw(3))': ("names the unknown 'windw': did you mean 'window'?", 10),
    'kind(theta=1, haeds=2)': ("gives kind an unknown argument 'haeds': did you mean 'heads'?", 14),
    'other(x=1)': ("gives other an unknown argument 'x': other takes none", 6),
    'other(width=1)': ("gives other an unknown argument 'width': other takes none", 6),
    'other(1)': ('gives other 1 arguments, it takes 0', 0),
    'kind(heads=2, heads=3)': ("gives kind its argument 'heads' twice", 14),
    'kind(full, mask=full)': ("gives kind its argument 'mask' twice", 11),
    'kind(mask=window)': ('lacks the argument size of window', 10),
    'kind(mask=window(0))': ('is invalid: size=0 must be positive', 10),
    'kind(heads=2.5)': ('gives kind.heads the value 2.5, it takes int', 11),
    'kind(heads=True)': ('gives kind.heads the value True, it takes int', 11),
    'kind(tied=1)': ('gives kind.tied the value 1, it takes bool', 10),
    'kind(lengths=(1, "a"))': ("gives kind.lengths the value (1, 'a'), it takes tuple of int", 13),
    'kind(heads=__import__("os").getpid())': ('gives kind.heads no literal value', 11),
    'kind(heads=eight)': ('gives kind.heads no literal value', 11),
    'kind(theta=big)': ('gives kind.theta no literal value', 11),
    'kind(heads=2, tied=yes)': ('gives kind.tied no literal value', 19),
    'kind(lengths=(1, two))': ('gives kind.lengths no literal value', 13),
    'kind(name=relu.x)': ('gives kind.name no literal value', 10),
    'kind(name=relu())': ('gives kind.name no literal value', 10),
    'kind(name=True)': ('gives kind.name the value True, it takes str', 10),
    'kind(labels=(a, 2))': ("gives kind.labels the value ('a', 2), it takes tuple of str", 12),
    'kind(heads={[]: 1})': ('gives kind.heads no literal value', 11),
    'kind(scale=True)': ('gives kind.scale the value True, it takes float or str', 11),
    # gate and labels can only be given by name.
    'kind(full, 1, 2, True, "", (3,), 2, "head")': ('gives kind 8 arguments, it takes 7', 0),
    'kind & other': ('combines what cannot be combined', 0),
    'kind(mask=full | 3)': ('is no spec: write name', 17),
    '3*kind': ('is no spec: write name', 0),
}


@pytest.mark.parametrize('text', BAD)
def test_a_bad_spec_is_refused_with_its_place_marked(text):
    message, column = BAD[text]
    with pytest.raises(ConfigError) as caught:
        spec.parse(text, KIND, 'model.x')
    refusal_is_marked(str(caught.value), text, message, column)


def refusal_is_marked(error, text, message, column):
    first, *shown, mark = error.split('\n')
    assert first.startswith(f'model.x={text!r} ')
    assert message in first
    assert shown == [f'  {text}']
    assert mark.strip() == '^'
    if column is not None:
        assert mark.index('^') - 2 == column


@given(
    st.text(alphabet='kind(other=1,.)["\'{}:*-_&| \t\nωé#\\', max_size=30) | st.text(max_size=20)
)
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert type(spec.parse(text, KIND, 'key')) in KIND.values()
    with contextlib.suppress(ConfigError):
        assert {type(kind) for kind in spec.parse_pattern(text, KIND, 'key')} <= set(KIND.values())


def test_no_kind_takes_more_than_eight_arguments():
    for table in (KINDS, *SPECS.values()):
        for name, cls in table.items():
            count = len([field for field in dataclasses.fields(cls) if field.init])
            assert count <= 8, f'{name} takes {count}'
