"""Masks against matrices written out, and properties of every mask.

The properties are about tiles, segments, reach, and the combination with the mask of a site.
"""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax import spec
from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.kinds.softmax import Softmax
from transformer_jax.attention.masks import MASKS, BigBird, Causal, Prefix, Segments, Window
from transformer_jax.batch import Tokens
from transformer_jax.config import resolve_architecture
from transformer_jax.errors import ConfigError
from transformer_jax.models.multi_head import PAST, MultiHead
from transformer_jax.schema import ModelConfig

LENGTH = 8


def parsed(text):
    return spec.parse(text, MASKS, 'mask')


def row_of(*lengths, padding=0):
    """Return the tokens of one row with segments of the given lengths, then padding."""
    positions = [np.arange(length) for length in (*lengths, padding)]
    segments = [np.full(length, segment) for segment, length in enumerate(lengths, 1)]
    return Tokens(
        np.concatenate(positions)[None], np.concatenate([*segments, np.zeros(padding, int)])[None]
    )


def matrix(mask, query=None, key=None):
    """Return the whole matrix of a mask, for a row of LENGTH tokens or the rows given."""
    query = row_of(LENGTH) if query is None else query
    return np.asarray(mask.allowed(query, query if key is None else key))[0]


def drawn(text):
    return np.array([[cell == '#' for cell in line] for line in text.split()])


# --- Matrices written out: a line is a query, a column a key --------------------------------------

DRAWN = {
    'full': '######## ' * LENGTH,
    'causal': '#....... ##...... ###..... ####.... #####... ######.. #######. ########',
    'prefix(3)': '###..... ###..... ###..... ####.... #####... ######.. #######. ########',
    'window(1)': '#....... .#...... ..#..... ...#.... ....#... .....#.. ......#. .......#',
    'window(3)': '###..... ####.... #####... .#####.. ..#####. ...##### ....#### .....###',
    'dilated(2, 3)': '#..#.... .#..#... ..#..#.. #..#..#. .#..#..# ..#..#.. ...#..#. ....#..#',
    'strided(3)': '####..#. #####..# ######.. #######. .####### ..###### #..##### .#..####',
    'fixed(3)': '###..#.. ###..#.. ###..#.. ..####.. ..####.. ..####.. ..#..### ..#..###',
    'fixed(4, 2)': '####..## ####..## ####..## ####..## ..###### ..###### ..###### ..######',
    'global_tokens(2)': '######## ######## ##...... ##...... ##...... ##...... ##...... ##......',
    'bigbird(2, first=0, random=0, length=8)': (
        '####.... ####.... ######.. ######.. ..###### ..###### ....#### ....####'
    ),
    'bigbird(2, window=1, random=0, length=8, first=1)': (
        '######## ######## ####.... ####.... ##..##.. ##..##.. ##....## ##....##'
    ),
    # Four blocks, one of them the own: three random ones are all the others.
    'bigbird(2, window=1, first=0, random=3, length=8)': '######## ' * LENGTH,
    'window(2) | global_tokens(1)': (
        '######## ###..... ####.... #.###... #..###.. #...###. #....### #.....##'
    ),
    'window(3) & dilated(4, 2)': (
        '#.#..... .#.#.... #.#.#... .#.#.#.. ..#.#.#. ...#.#.# ....#.#. .....#.#'
    ),
}
DRAWN_IN_A_DECODER = {
    'window(3)': '#....... ##...... ###..... .###.... ..###... ...###.. ....###. .....###',
    'dilated(2, 3)': '#....... .#...... ..#..... #..#.... .#..#... ..#..#.. ...#..#. ....#..#',
    'strided(3)': '#....... ##...... ###..... ####.... .####... ..####.. #..####. .#..####',
    'fixed(3)': '#....... ##...... ###..... ..##.... ..###... ..####.. ..#..##. ..#..###',
    'window(2) | global_tokens(1)': (
        '#....... ##...... ###..... #.##.... #..##... #...##.. #....##. #.....##'
    ),
    'prefix(3)': '###..... ###..... ###..... ####.... #####... ######.. #######. ########',
    'window(2) & prefix(3)': (
        '##...... ###..... .##..... ..##.... ...##... ....##.. .....##. ......##'
    ),
    '(window(2) | global_tokens(3)) & prefix(3)': (
        '###..... ###..... ###..... ####.... #####... ###.##.. ###..##. ###...##'
    ),
}


@pytest.mark.parametrize('text', DRAWN)
def test_a_mask_is_its_drawing(text):
    np.testing.assert_array_equal(matrix(parsed(text)), drawn(DRAWN[text]))


@pytest.mark.parametrize('text', DRAWN_IN_A_DECODER)
def test_in_a_decoder_a_mask_is_its_drawing(text):
    np.testing.assert_array_equal(
        matrix(parsed(text).within(PAST)), drawn(DRAWN_IN_A_DECODER[text])
    )


# Two segments of 3 and 2 tokens, then one token of padding.
PACKED = Tokens(np.array([[0, 1, 2, 0, 1, 0]]), np.array([[1, 1, 1, 2, 2, 0]]))
DRAWN_PACKED = {
    Segments(): '###... ###... ###... ...##. ...##. ......',
    Causal(): '#..#.# ##.### ###### #..#.# ##.### #..#.#',  # by positions alone: 0 1 2 0 1 0
    PAST: '#..... ##.... ###... ...#.. ...##. ......',
    Segments() | Causal(): '####.# ###### ###### #..### ##.### #..#.#',
    Window(1).within(Segments()): '#..... .#.... ..#... ...#.. ....#. ......',
    Prefix(2).within(PAST): '##.... ##.... ###... ...##. ...##. ......',
    parsed('global_tokens(1)').within(Segments()): '###... #..... #..... ...##. ...#.. ......',
}


@pytest.mark.parametrize('mask', DRAWN_PACKED, ids=str)
def test_on_packed_rows_a_mask_is_its_drawing(mask):
    np.testing.assert_array_equal(
        AttentionInputs(mask, PACKED, PACKED).allowed_BTS()[0], drawn(DRAWN_PACKED[mask])
    )


def test_a_mask_over_other_keys_compares_segments_across_the_sides():
    key = Tokens(np.array([[0, 1, 0, 0]]), np.array([[1, 1, 2, 0]]))
    np.testing.assert_array_equal(
        matrix(Segments(), PACKED, key), drawn('##.. ##.. ##.. ..#. ..#. ....')
    )


# --- Any mask -------------------------------------------------------------------------------------


def small(least=1, most=5):
    return st.integers(least, most)


@st.composite
def bigbirds(draw):
    block = draw(small(1, 3))
    return BigBird(
        block,
        2 * draw(small(0, 2)) + 1,
        draw(small(0, 2)),
        draw(small(0, 3)),
        block * draw(small(1, 6)),
        draw(small(0)),
    )


atoms = st.one_of(
    bigbirds(),
    st.builds(lambda summary, more: MASKS['fixed'](summary + more, summary), small(), small(0)),
    st.builds(MASKS['dilated'], small(), small()),
    *(st.builds(MASKS[name]) for name in ('full', 'causal')),
    *(st.builds(MASKS[name], small()) for name in ('prefix', 'window', 'strided', 'global_tokens')),
)
formulas = st.recursive(
    atoms,
    lambda inner: st.builds(
        lambda a, b, both: a & b if both else a | b, inner, inner, st.booleans()
    ),
    max_leaves=4,
)
sites = st.sampled_from([Segments(), PAST])
# All of length 15, so that nothing is compiled twice.
rows = (
    st.lists(small(1, 9), min_size=1, max_size=3)
    .filter(lambda lengths: sum(lengths) <= 15)
    .map(lambda lengths: row_of(*lengths, padding=15 - sum(lengths)))
)


def test_the_strategies_know_all_of_the_table():
    assert {
        'bigbird',
        'fixed',
        'dilated',
        'full',
        'causal',
        'prefix',
        'window',
        'strided',
        'global_tokens',
    } == set(MASKS)


@given(formulas, sites, rows)
def test_nobody_sees_beyond_the_reach(mask, site, tokens):
    mask = mask.within(site)
    back, ahead = mask.reach()
    offsets = tokens.positions_BT[0][:, None] - tokens.positions_BT[0][None, :]
    allowed = matrix(mask, tokens)
    assert (offsets[allowed] <= back).all()
    assert (-offsets[allowed] <= ahead).all()


@pytest.mark.parametrize(
    ('text', 'reach'),
    [
        ('window(3)', (2, 2)),
        ('dilated(2, 3)', (3, 3)),
        ('causal', (math.inf, 0)),
        ('prefix(4)', (math.inf, 3)),
        ('window(3) | dilated(2, 3)', (3, 3)),
        ('window(3) & causal', (2, 0)),
        ('window(3) | global_tokens(1)', 2 * (math.inf,)),
    ],
)
def test_the_reach_is_no_wider_than_it_must_be(text, reach):
    mask = parsed(text)
    assert mask.reach() == reach
    offsets = (np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None, :])[matrix(mask)]
    assert (offsets.max(), -offsets.min()) == tuple(min(bound, LENGTH - 1) for bound in reach)


@given(formulas, sites, rows, st.data())
def test_a_tile_is_a_part_of_the_whole(mask, site, tokens, data):
    mask = mask.within(site)
    # In any order.
    query, key = (data.draw(st.lists(st.integers(0, 14), min_size=n, max_size=n)) for n in (3, 4))
    tile = matrix(mask, *(Tokens(*(leaf[:, part] for leaf in tokens)) for part in (query, key)))
    np.testing.assert_array_equal(tile, matrix(mask, tokens)[np.ix_(query, key)])


@given(formulas, sites, rows)
def test_a_packed_segment_is_seen_as_if_alone(mask, site, tokens):
    mask = mask.within(site)
    expected = np.zeros(2 * tokens.segments_BT.shape[1:], bool)
    for segment in set(tokens.segments_BT[0]) - {0}:
        own = tokens.segments_BT[0] == segment
        alone = row_of(own.sum(), padding=15 - own.sum())
        expected[np.ix_(own, own)] = matrix(mask, alone)[: own.sum(), : own.sum()]
    np.testing.assert_array_equal(matrix(mask, tokens), expected)


@given(atoms.filter(lambda mask: type(mask) is not MASKS['global_tokens']), sites, rows)
def test_a_token_sees_at_least_itself(mask, site, tokens):
    real = tokens.segments_BT[0] != 0
    np.testing.assert_array_equal(np.diagonal(matrix(mask.within(site), tokens)), real)


@given(atoms, sites, rows)
def test_a_pattern_never_leaves_a_token_with_nothing(mask, site, tokens):
    np.testing.assert_array_equal(
        matrix(mask.within(site), tokens).any(-1), tokens.segments_BT[0] != 0
    )


@given(formulas, rows)
def test_a_site_is_only_narrowed_but_for_the_prefix(mask, tokens):
    opened = matrix(PAST, tokens) | (
        matrix(Segments(), tokens) & (tokens.positions_BT < mask.prefix_length())
    )
    np.testing.assert_array_equal(matrix(mask.within(PAST), tokens), opened & matrix(mask, tokens))


def test_traced_tokens_give_the_same():
    masks, tokens = [parsed(text).within(PAST) for text in DRAWN], row_of(5, 3, padding=1)
    traced = jax.jit(lambda tokens: [mask.allowed(tokens, tokens)[0] for mask in masks])(tokens)
    for mask, allowed in zip(masks, traced, strict=True):
        np.testing.assert_array_equal(allowed, matrix(mask, tokens))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('window(0)', 'size=0 is outside'),
        ('dilated(2, 0)', 'rate=0 is outside'),
        ('strided(0)', 'stride=0 is outside'),
        ('fixed(2, 3)', 'summary=3 must be at most stride=2'),
        ('global_tokens(0)', 'tokens=0 is outside'),
        ('prefix(-1)', 'length=-1 is outside'),
        ('bigbird(window=2)', 'window=2 must be odd'),
        ('bigbird(random=-1)', 'random=-1 is outside'),
        ('bigbird(block=64, length=32)', 'length=32 must be 1 to 10,000 times block=64'),
    ],
)
def test_sizes_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parsed(text)


# --- BigBird's random blocks ----------------------------------------------------------------------


def blocks_of(mask, blocks):
    """Return which key blocks each query block sees; it sees all of a block or nothing of it."""
    allowed = matrix(mask, row_of(blocks * mask.block)).reshape(
        blocks, mask.block, blocks, mask.block
    )
    np.testing.assert_array_equal(allowed.all((1, 3)), allowed.any((1, 3)))
    return allowed.any((1, 3))


@pytest.mark.parametrize('seed', range(5))
def test_random_blocks_are_others_than_those_seen_anyway(seed):
    without = blocks_of(BigBird(2, 3, 2, random=0, length=32, seed=seed), 16)
    random = blocks_of(BigBird(2, 3, 2, random=3, length=32, seed=seed), 16) & ~without
    # The first blocks see all without random ones.
    np.testing.assert_array_equal(random[:2].sum(-1), 0)
    np.testing.assert_array_equal(random[2:].sum(-1), 3)


def test_random_blocks_are_drawn_evenly_by_the_seed():
    def draws(seed):
        return blocks_of(BigBird(1, 1, 0, random=1, length=6, seed=seed), 6) & ~np.eye(
            6, dtype=bool
        )

    np.testing.assert_array_equal(draws(0), draws(0))
    # Each of 5 other blocks 60 times of 300, standard deviation 7.
    counts = sum(draws(seed).astype(int) for seed in range(300))
    np.testing.assert_array_equal(np.diagonal(counts), 0)
    assert (abs(counts + 60 * np.eye(6) - 60) < 35).all()


def test_random_blocks_end_with_the_length():
    mask = BigBird(2, 1, 0, random=2, length=8)
    seen = blocks_of(mask, 7)
    np.testing.assert_array_equal(seen[:4, :4].sum(-1), 3)
    np.testing.assert_array_equal(seen[4:], np.eye(7, dtype=bool)[4:])
    assert not seen[:4, 4:].any()


# --- A prefix in a decoder ------------------------------------------------------------------------


def test_a_prefix_is_seen_before_its_turn_so_nothing_causal_is_promised():
    assert {'causal', 'decode'} <= Softmax(mask=Prefix(1)).supports()
    for mask in (Prefix(2), Window(4) & Prefix(2), Window(4) | Prefix(2)):
        assert not {'causal', 'decode'} & Softmax(mask=mask).supports()
        assert 'encoder' in Softmax(mask=mask).supports()


def test_a_prefix_that_comes_at_once_decodes_as_all_at_once():
    config = ModelConfig(
        d_model=8, d_ff=8, num_heads=2, attention='softmax(mask=window(4) & prefix(3))'
    )
    module, tokens = MultiHead(resolve_architecture(config, 10), 'decoder', 0), row_of(LENGTH)
    x_BTD = np.random.default_rng(0).normal(size=(1, LENGTH, 8)).astype(np.float32)

    def attend(module, x_BTD):
        return module(
            x_BTD, module.keys(x_BTD, tokens), AttentionInputs(PAST, tokens, tokens), None
        )

    expected, variables = jax.jit(lambda *x: module.init_with_output(*x, method=attend))(
        jax.random.PRNGKey(0), x_BTD
    )
    variables = nn.meta.unbox(variables)
    step = jax.jit(
        lambda x_BTD, tokens, cache: module.apply(
            variables, x_BTD, AttentionInputs(PAST, tokens, tokens), cache, method='step'
        )
    )

    def decoded(*lengths):
        cache = module.apply(variables, x_BTD[:, :1], row_of(1), LENGTH, PAST, method='init_cache')
        outputs, start = [], 0
        for length in lengths:
            part = slice(start, start := start + length)
            o_BTD, cache = step(x_BTD[:, part], Tokens(*(leaf[:, part] for leaf in tokens)), cache)
            outputs.append(o_BTD)
        return np.concatenate(outputs, axis=1)

    np.testing.assert_allclose(decoded(3, 1, 1, 1, 1, 1), expected, atol=1e-6)
    apart = abs(decoded(*LENGTH * (1,)) - expected).max(-1)[0]
    assert (apart[:2] > 1e-3).all()  # one by one, tokens miss those after them
    assert (apart[2:] < 1e-6).all()
