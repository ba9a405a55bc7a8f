"""Rows that are cut over devices: which pieces a device has, what it sends, and what it holds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.engines import blocked, resolve_engine, ring
from transformer_jax.attention.engines.pieces import Pieces
from transformer_jax.attention.engines.tiles import SiteSpec
from transformer_jax.attention.kinds.softmax import KeysValues, Queries
from transformer_jax.attention.masks import Causal, Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import apply_dropout
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.layers.parameters import axes_that_cut, constrain
from transformer_jax.losses.chunks import join_rows, split_rows
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.positions import POSITIONS, Position
from transformer_jax.schema import MeshConfig

PIECES, FULL = 8, Segments()
MESH = MeshConfig(data=1, context=PIECES)
SITE = SiteSpec('decoder', HeadDims(4, 2, 8, 8), 'float32', False, context=PIECES)


def on_devices(function, row_T):
    """What `function(pieces, a_BT)` gives where each device has a piece of a row; joined again."""
    pieces = Pieces(PIECES, ('context',))
    cut = PartitionSpec(None, 'context')
    compiled = Partitioner(MESH).compile(
        lambda a_BT: jax.shard_map(
            functools.partial(function, pieces), in_specs=cut, out_specs=cut
        )(a_BT)
    )
    return np.asarray(compiled(np.asarray(row_T)[None]))[0]


def test_each_device_gets_an_early_and_a_late_piece():
    halves_T = np.repeat(np.arange(16), 3)  # 8 devices, each with 2 halves of 3 tokens
    found_T = on_devices(ring.exchange_halves, halves_T)
    assert [set(piece) for piece in found_T.reshape(8, 6)] == [{d, 15 - d} for d in range(8)]

    def there_and_back(pieces, a_BT):
        return ring.return_halves(pieces, ring.exchange_halves(pieces, a_BT))

    np.testing.assert_array_equal(on_devices(there_and_back, np.arange(48)), np.arange(48))


@pytest.mark.parametrize(('before', 'after'), [(1, 0), (0, 3), (5, 2), (4, 8), (40, 40)])
def test_a_piece_is_surrounded_by_its_neighbors(before, after):
    row_T = np.arange(1, 33)  # pieces of 4 tokens
    found = on_devices(
        lambda pieces, a_BT: blocked.surround(pieces, a_BT, before, after), row_T
    ).reshape(8, -1)
    padded = np.pad(row_T, (before, after))
    for device, near in enumerate(found):
        np.testing.assert_array_equal(near, padded[4 * device :][: before + 4 + after])


@pytest.mark.parametrize(
    ('attention', 'position', 'engine'),
    [
        ('softmax', 'rope', 'ring'),
        ('softmax(forget=True)', 'none', 'ring'),
        ('additive(normalizer=sigmoid)', 'none', 'ring'),
        ('softmax(mask=window(8))', 't5', 'blocked'),
        ('softmax(mask=window(8), normalizer=entmax15)', 'none', 'blocked'),
        ('softmax(normalizer=sparsemax)', 'none', 'allgather'),
        ('softmax(talking="after")', 'none', 'allgather'),
        ('softmax', 'cope', 'allgather'),
        ('linear(decay=gated)', 'none', 'own'),
    ],
)
def test_auto_takes_the_engine_that_moves_least(attention, position, engine):
    kind = spec.parse(attention, KINDS, 'attention')
    assert resolve_engine('auto', kind, spec.parse(position, POSITIONS, 'position'), SITE) == engine


def test_windows_go_round_the_ring_in_cross_attention():
    kind = spec.parse('softmax(mask=window(8))', KINDS, 'attention')
    assert resolve_engine('auto', kind, Position(), SITE._replace(name='cross')) == 'ring'


def attention(attention, engine, length, rows=1, mask=FULL, dropout=None):
    """(o_BTNH as a function of queries and keys, shapes of both); 4 heads of 8, 2 of keys."""
    kind = spec.parse(attention, KINDS, 'attention')
    positions_BT = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
    tokens = Tokens(positions_BT, jnp.ones_like(positions_BT))
    params = {'normalizer': ()}
    inputs = AttentionInputs(
        kind.mask.within(mask), tokens, tokens, params=params, dropout=dropout, engine=engine
    )
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    queries = Queries(shape((rows, length, 4, 8)))
    keys = KeysValues(shape((rows, length, 2, 8)), shape((rows, length, 2, 8)))
    return lambda queries, keys: kind.attend(queries, keys, inputs), queries, keys


def sent_tokens(jaxpr):
    """{collective: tokens that a device sends, as often as it sends them} of floating-point
    arrays [B, T, …].
    """
    sent = {}
    for equation in jaxpr.eqns:
        inner = [
            getattr(leaf, 'jaxpr', leaf)
            for leaf in jax.tree.leaves(list(equation.params.values()))
            if isinstance(leaf, Jaxpr | ClosedJaxpr)
        ]
        times = equation.params['length'] if equation.primitive.name == 'scan' else 1
        for name, count in (item for j in inner for item in sent_tokens(j).items()):
            sent[name] = sent.get(name, 0) + times * count
        if equation.primitive.name in ('ppermute', 'all_gather', 'psum', 'all_to_all'):
            for variable in equation.invars:
                if variable.aval.ndim > 2 and variable.aval.dtype == jnp.float32:
                    # Chunks have an axis C first.
                    shape = variable.aval.shape[-4:]
                    count = math.prod(variable.aval.shape) // math.prod(shape[2:])
                    sent[equation.primitive.name] = sent.get(equation.primitive.name, 0) + count
    return sent


@pytest.mark.parametrize(
    ('attention_text', 'engine', 'mask', 'expected'),
    [
        # Keys and values of 16 tokens, to 7 other devices one after the other.
        ('softmax', 'ring', FULL, {'ppermute': 2 * 7 * 16}),
        # Queries, keys, values and outputs change places too: each device keeps at most a half.
        ('softmax', 'ring', FULL & Causal(), {'ppermute': 2 * 7 * 16 + 4 * 16}),
        ('softmax(mask=window(6))', 'blocked', FULL & Causal(), {'ppermute': 2 * 5}),
        ('softmax(mask=window(6))', 'blocked', FULL, {'ppermute': 2 * (5 + 5)}),
        ('softmax', 'allgather', FULL, {'all_gather': 2 * 16}),
    ],
)
def test_a_device_sends_what_others_need_and_no_more(attention_text, engine, mask, expected):
    attend, queries, keys = attention(attention_text, engine, 16 * PIECES, mask=mask)
    with Partitioner(MESH).context():
        jaxpr = jax.make_jaxpr(attend)(queries, keys)
    assert sent_tokens(jaxpr.jaxpr) == expected


def temporary_bytes(length, pieces):
    attend, queries, keys = attention('softmax', 'ring', length, mask=FULL & Causal())
    gradient = jax.grad(lambda queries, keys: attend(queries, keys).sum(), (0, 1))
    compiled = Partitioner(MeshConfig(data=1, context=pieces, tensor=8 // pieces)).compile(gradient)
    return compiled.lower(queries, keys).compile().memory_analysis().temp_size_in_bytes


def test_a_device_holds_its_share_of_the_row():
    # 4 times the tokens on 4 times the devices: keys of whole rows would be 4 times as many.
    few, many = temporary_bytes(1024, 2), temporary_bytes(4096, 8)
    assert many <= 1.1 * few


@pytest.mark.parametrize('engine', ['ring', 'allgather', 'blocked'])
def test_every_device_drops_other_weights(engine):
    text = 'softmax(mask=window(24))' if engine == 'blocked' else 'softmax'
    length, rows = 32, 2
    attend, queries, keys = attention(
        text, engine, length, rows, dropout=(jax.random.PRNGKey(0), 0.5)
    )
    # Every weight is the same: outputs differ by what was dropped alone.
    queries, keys = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (queries, keys))
    values = jnp.asarray(np.random.default_rng(0).normal(size=keys.v_BSKH.shape[1:]), jnp.float32)
    keys = keys._replace(v_BSKH=jnp.broadcast_to(values[None], keys.v_BSKH.shape))
    run = Partitioner(MeshConfig(data=2, context=4)).compile(attend)
    found_BTNH = np.asarray(run(queries, keys))
    if engine != 'blocked':  # its tokens see different keys anyway
        assert len(np.unique(found_BTNH.round(5), axis=None)) > 0.9 * found_BTNH.size
    else:
        assert not np.isclose(found_BTNH[0], found_BTNH[1]).any()
    np.testing.assert_array_equal(found_BTNH, run(queries, keys))


def test_the_backward_pass_of_the_ring_drops_the_same_weights():
    attend, queries, keys = attention(
        'softmax', 'ring', 32, 2, dropout=(jax.random.PRNGKey(0), 0.5)
    )
    rng = np.random.default_rng(0)
    queries, keys, r_BTNH = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        (queries, keys, queries.q_BTNH),
    )

    def product(values):
        return (attend(queries, keys._replace(v_BSKH=values)) * r_BTNH).sum()

    run = Partitioner(MeshConfig(data=2, context=4)).compile(jax.value_and_grad(product))
    value, gradient = run(keys.v_BSKH)
    # The output is linear in the values.
    assert float((gradient * keys.v_BSKH).sum()) == pytest.approx(float(value), rel=1e-4)


def test_activations_drop_what_one_device_drops():
    x_BTD, rng = jnp.ones((4, 16, 8)), jax.random.PRNGKey(0)

    def drop(x_BTD):
        return constrain(apply_dropout(rng, constrain(x_BTD), 0.5))

    found = Partitioner(MeshConfig(data=2, context=4)).compile(drop)(x_BTD)
    assert found.sharding.shard_shape(found.shape) == (2, 4, 8)
    np.testing.assert_array_equal(found, drop(x_BTD))


def test_only_what_divides_is_cut():
    with Partitioner(MeshConfig(data=2, context=4)).context():
        assert axes_that_cut('length', 16) == ('context',)
        assert axes_that_cut('length', 1) == axes_that_cut('length', 18) == ()
        assert axes_that_cut('batch', 6) == ('data', 'fsdp')
    assert axes_that_cut('length', 16) == ()  # no mesh


def test_the_pieces_of_rows_become_rows():
    a_BTD = jnp.arange(2 * 8 * 3).reshape(2, 8, 3)

    def split(a_BTD):
        a_RTD = split_rows(a_BTD)
        return a_RTD, join_rows(a_RTD, 2)

    found_RTD, joined_BTD = Partitioner(MeshConfig(data=2, context=4)).compile(split)(a_BTD)
    expected = [a_BTD[row, 2 * piece : 2 * piece + 2] for piece in range(4) for row in range(2)]
    np.testing.assert_array_equal(found_RTD, np.stack(expected))
    assert found_RTD.sharding.shard_shape(found_RTD.shape) == (1, 2, 3)
    np.testing.assert_array_equal(joined_BTD, a_BTD)
    assert split_rows(a_BTD) is a_BTD  # no mesh
