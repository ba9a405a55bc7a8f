"""Engines: they agree with the dense one; their costs; what they refuse; what `auto` chooses."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from laws.contract import distance, packed, whole

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs, engines
from transformer_jax.attention.engines import SiteSpec, blocked, chunked, dense, fused
from transformer_jax.attention.kinds.softmax import KeysValues, Queries, Softmax
from transformer_jax.attention.masks import Segments
from transformer_jax.config import resolve, resolve_architecture
from transformer_jax.efficiency.flops import matmul_flops
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.blocks import Block
from transformer_jax.models.multi_head import PAST
from transformer_jax.partitioning.rules import logical_rules
from transformer_jax.positions import POSITIONS, Position
from transformer_jax.profiling.cost_report import cost_report
from transformer_jax.schema import DataConfig, ExperimentConfig, ModelConfig
from transformer_jax.training.programs import make_program

B, T, N, K, H = 3, 22, 4, 2, 8
PACKED = packed((7, 9), (20,), (3, 5, 1), length=T)  # every row ends with padding
UNPACKED = packed((16,), (), (22,), length=T)
MEMORY = packed(
    (5, 9), (), (3, 7, 1), length=17
)  # row 1 has no key, row 0 not all keys of segment 2
CHUNKED = functools.partial(
    chunked.attend, chunk=5
)  # of 22 tokens: five chunks, the last one filled up
BLOCKED = functools.partial(blocked.attend, size=4)
NO_POSITION = Position()


def parse(text):
    return spec.parse(text, KINDS, 'attention')


class RandomScope:
    """A scope whose parameters are random numbers."""

    heads, layer = HeadDims(N, K, H, H), 1

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def parameter(self, name, shape, axes, init):
        return jnp.asarray(self.rng.normal(size=shape), jnp.float32)


def arrays(S=T, seed=0, dtype=jnp.float32):
    """Return random queries, keys, values, and the cotangent of the outputs."""
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((B, T, N, H), *2 * [(B, S, K, H)], (B, T, N, H))
    ]


def learned(kind, position=NO_POSITION):
    """Return the parameters of the kind, and those of the position encoding."""
    return kind.attention_params(RandomScope()), position.params(RandomScope())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward(attend, kind, mask, position, inputs, parameters, tokens, memory, dropout=None):
    """Return o_BTNH of queries, keys and values."""
    q_BTNH, k_BSKH, v_BSKH = inputs
    attention_inputs = AttentionInputs(
        mask & kind.mask, tokens, memory, position, *parameters, dropout=dropout
    )
    return attend(kind, Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def graded(attend, kind, mask, position, inputs, parameters, r_BTNH, *others):
    """Return o_BTNH and the gradients of its product with r_BTNH.

    The gradients are with respect to queries, keys, values and all parameters.
    """

    def product(inputs, parameters):
        o_BTNH = forward(attend, kind, mask, position, inputs, parameters, *others)
        return (o_BTNH * r_BTNH).sum(), o_BTNH

    grads, o_BTNH = jax.grad(product, (0, 1), has_aux=True)(inputs, parameters)
    return o_BTNH, grads


def run(attend, kind, mask, tokens, memory, inputs, position=NO_POSITION, dropout=None):
    """Return the results of `graded` with random parameters; `inputs` come from `arrays`."""
    *inputs, r_BTNH = inputs
    return graded(
        attend,
        kind,
        mask,
        position,
        inputs,
        learned(kind, position),
        r_BTNH,
        tokens,
        memory,
        dropout,
    )


# --- Agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('attention', 'position', 'mask', 'memory', 'engine'),
    [
        ('softmax(normalizer=sink, softcap=2.0, scale=0.7)', 't5', PAST, PACKED, CHUNKED),
        ('softmax(normalizer=sigmoid, talking="before")', 'none', Segments(), MEMORY, CHUNKED),
        (
            'softmax(normalizer=relu2, mask=window(3) | global_tokens(2))',
            'shaw(clip=3)',
            PAST,
            PACKED,
            CHUNKED,
        ),
        (
            'softmax(mask=window(6), normalizer=sparsemax, talking="both")',
            'cope(max_positions=4)',
            PAST,
            PACKED,
            BLOCKED,
        ),
        (
            'softmax(mask=dilated(3, 2), normalizer=sigmoid, softcap=2.0)',
            'shaw(clip=3)',
            Segments(),
            PACKED,
            BLOCKED,
        ),
        ('softmax(mask=window(60))', 'none', PAST, PACKED, blocked.attend),  # wider than the rows
    ],
)
def test_an_engine_agrees_with_the_dense_one(attention, position, mask, memory, engine):
    kind, position = parse(attention), spec.parse(position, POSITIONS, 'model.position')
    tokens, inputs = PACKED, arrays(memory.positions_BT.shape[1])
    expected_BTNH, expected = run(dense.attend, kind, mask, tokens, memory, inputs, position)
    o_BTNH, grads = run(engine, kind, mask, tokens, memory, inputs, position)
    assert distance(o_BTNH, expected_BTNH) < 1e-5
    for (path, grad), wanted in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(expected), strict=True
    ):
        assert distance(grad, wanted) < 1e-4, path
    empty_BT = ~np.asarray((mask & kind.mask).allowed(tokens, memory)).any(-1)
    assert empty_BT.any()
    assert not np.asarray(o_BTNH)[empty_BT].any()
    assert not np.asarray(grads[0][0])[empty_BT].any()


@pytest.mark.parametrize('engine', [CHUNKED, BLOCKED])
def test_what_padding_holds_has_no_influence(engine):
    kind, inputs = parse('softmax(mask=window(4))'), arrays()
    padding_BT11 = (PACKED.segments_BT == 0)[:, :, None, None]
    q_BTNH, k_BSKH, v_BSKH, r_BTNH = inputs
    changed = (
        q_BTNH,
        jnp.where(padding_BT11, 1e30, k_BSKH),
        jnp.where(padding_BT11, -1e30, v_BSKH),
        r_BTNH,
    )
    before, after = (run(engine, kind, Segments(), PACKED, PACKED, x) for x in (inputs, changed))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_chunks_take_bfloat16_with_sums_in_float32():
    half = arrays(dtype=jnp.bfloat16)[:3]
    exact, plain, chunks = (
        forward(engine, Softmax(), PAST, NO_POSITION, inputs, learned(Softmax()), PACKED, PACKED)
        for engine, inputs in (
            (dense.attend, [x.astype(jnp.float32) for x in half]),
            (dense.attend, half),
            (CHUNKED, half),
        )
    )
    assert chunks.dtype == jnp.bfloat16
    assert distance(chunks, exact) < 2 * distance(plain, exact)


@pytest.mark.slow
@pytest.mark.parametrize('engine', [dense.attend, CHUNKED])
def test_weights_are_dropped_at_their_rate(engine):
    """Each weight is 0 or divided by 1 − rate, the same in forward and backward pass.

    Unit vectors as values make the outputs the weights. Each tile of the chunked engine has its own
    random numbers.
    """
    length, rate = 64, 0.25
    kind, tokens, zeros_BTNH = (
        parse('softmax(mask=window(12))'),
        whole(1, length),
        jnp.zeros((1, length, 8, 4)),
    )
    v_BSKH = jnp.broadcast_to(jnp.eye(length)[None, :, None], (1, length, 8, length))
    r_BTNH = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 8, length)), jnp.float32)
    dropout = jax.random.PRNGKey(3), jnp.float32(rate)
    o_BTNH, ((*_, grad_BSKH), _) = run(
        engine,
        kind,
        Segments(),
        tokens,
        tokens,
        (zeros_BTNH, zeros_BTNH, v_BSKH, r_BTNH),
        dropout=dropout,
    )
    weights_TNS, r_TNH = np.asarray(o_BTNH)[0], np.asarray(r_BTNH)[0]
    allowed_TS = np.abs(np.subtract.outer(range(length), range(length))) < 12
    plain_TS = allowed_TS / allowed_TS.sum(-1, keepdims=True)
    kept_TNS = weights_TNS > 0
    np.testing.assert_allclose(weights_TNS, kept_TNS * plain_TS[:, None] / (1 - rate), rtol=1e-5)
    kept = kept_TNS.swapaxes(1, 2)[allowed_TS]
    assert kept.mean() == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / kept.size))
    np.testing.assert_allclose(
        grad_BSKH[0], np.einsum('tns,tnh->snh', weights_TNS, r_TNH), atol=1e-5
    )
    if engine is CHUNKED:
        tiles = [
            kept_TNS[place : place + 5, :, place : place + 5] for place in range(0, 60, 5)
        ]  # of 13 chunks of 5
        assert len({tile.tobytes() for tile in tiles}) == len(tiles)


# --- Costs ----------------------------------------------------------------------------------------


def compiled(attend, kind, length):
    """Return the costs of a compiled program.

    Returns:
        (bytes of temporary arrays of the forward and backward pass, FLOPs of the matrix products
        of the forward pass).
    """
    tokens, mask = whole(1, length), PAST & kind.mask
    x_BTNH = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

    def total(q_BTNH, k_BSKH, v_BSKH):
        attention_inputs = AttentionInputs(mask, tokens, tokens, params=learned(kind)[0])
        return attend(kind, Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2))).lower(x_BTNH, x_BTNH, x_BTNH).compile()
    flops = matmul_flops(jax.make_jaxpr(total)(x_BTNH, x_BTNH, x_BTNH))
    return program.memory_analysis().temp_size_in_bytes, flops


@pytest.mark.slow
def test_memory_of_chunks_is_linear():
    short, long = (compiled(chunked.attend, Softmax(), length)[0] for length in (1024, 4096))
    assert long < 4.6 * short
    assert long < 4096**2 * 2 * 4 / 8  # of the memory of the scores that the dense engine holds


@pytest.mark.slow
def test_memory_and_flops_of_blocks_are_linear():
    kind = parse('softmax(mask=window(64))')
    (memory, flops), (long_memory, long_flops) = (
        compiled(blocked.attend, kind, length) for length in (2048, 8192)
    )
    assert long_memory < 4.6 * memory
    assert long_flops == 4 * flops
    # 1.5 windows, rounded up; 2 heads, 2 products, 2 FLOPs for each multiplication and addition.
    assert flops <= 1.6 * 64 * 2048 * 2 * 2 * 2 * 8


def test_chunks_that_nobody_may_see_are_left_out():
    made = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Position):
        def score(self, parameters, scores_BKGTS, tile):
            jax.debug.callback(lambda: made.append(1))
            return scores_BKGTS

    tokens = whole(B, T)
    attention_inputs = AttentionInputs(PAST, tokens, tokens, Counted(), {'normalizer': ()})
    q_BTNH, k_BSKH, v_BSKH, _ = arrays()
    jax.block_until_ready(
        CHUNKED(Softmax(), Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs)
    )
    jax.effects_barrier()
    assert len(made) == 15  # of 25


# --- Kernels, as far as a machine without them can test -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ('attention', 'mask', 'memory'),
    [('softmax(mask=window(6), scale=0.7)', PAST, None), ('softmax', Segments(), MEMORY)],
)
def test_what_cudnn_is_asked_for_is_the_dense_result(attention, mask, memory):
    """With XLA in the place of cuDNN, the result is that of the dense engine.

    The kernel gets lengths, causality and the window where rows are not packed, and the mask as a
    matrix where they are.
    """
    engine, kind = functools.partial(fused.cudnn, implementation='xla'), parse(attention)
    plain = UNPACKED if memory is None else packed((5,), (), (9,), length=17)
    for tokens, keys in [(UNPACKED, plain), (PACKED, memory or PACKED)]:
        inputs = arrays(keys.positions_BT.shape[1])
        expected_BTNH, expected = run(dense.attend, kind, mask, tokens, keys, inputs)
        o_BTNH, grads = run(engine, kind, mask, tokens, keys, inputs)
        assert distance(o_BTNH, expected_BTNH) < 1e-5
        assert distance(grads, expected) < 1e-4
        empty_BT = ~np.asarray((mask & kind.mask).allowed(tokens, keys)).any(-1)
        assert not np.asarray(o_BTNH)[empty_BT].any()


def asked(monkeypatch, attention, mask, tokens):
    """Return the arguments of jax.nn.dot_product_attention in each of the compiled branches."""
    calls = []

    def kernel(q_BTNH, k_BSKH, v_BSKH, **arguments):
        calls.append(arguments)
        return q_BTNH

    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    kind, (q_BTNH, k_BSKH, v_BSKH, _) = parse(attention), arrays()
    attention_inputs = AttentionInputs(mask & kind.mask, tokens, tokens)
    fused.cudnn(kind, Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs)
    assert all(call.pop('implementation') == 'cudnn' for call in calls)
    return {'mask' if 'mask' in call else 'lengths': call for call in calls}


def test_cudnn_is_told_the_mask_in_the_form_that_lets_it_skip(monkeypatch):
    calls = asked(monkeypatch, 'softmax(mask=window(6), scale=0.7)', PAST, UNPACKED)
    lengths = calls['lengths']
    assert (lengths['is_causal'], lengths['local_window_size'], lengths['scale']) == (
        True,
        (5, 0),
        0.7,
    )
    assert 'is_causal' not in calls['mask']  # which would align the mask with its top left corner
    causal, full = (
        asked(monkeypatch, 'softmax', mask, UNPACKED)['lengths'] for mask in (PAST, Segments())
    )
    assert (causal['is_causal'], causal['local_window_size']) == (True, None)
    assert (full['is_causal'], full['local_window_size']) == (False, None)
    assert asked(monkeypatch, 'softmax(mask=window(6))', Segments(), UNPACKED).keys() == {
        'mask'
    }  # ahead as well
    assert asked(monkeypatch, 'softmax(mask=strided(3))', PAST, UNPACKED).keys() == {'mask'}


def mesh_of(sizes):
    return jax.make_mesh(
        sizes,
        ('data', 'fsdp', 'tensor'),
        axis_types=3 * (AxisType.Auto,),
        devices=jax.devices()[: math.prod(sizes)],
    )


@pytest.mark.slow
@pytest.mark.parametrize('tokens', [UNPACKED, PACKED])
def test_cudnn_has_each_devices_own_rows_and_heads_on_a_mesh(tokens, monkeypatch):
    seen, attend = [], jax.nn.dot_product_attention

    def kernel(q_BTNH, *arguments, **named):
        seen.append(q_BTNH.shape)
        return attend(q_BTNH, *arguments, **named)

    kind = parse('softmax(mask=window(6))')
    expected_BTNH, expected = run(dense.attend, kind, PAST, tokens, tokens, arrays())
    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    with jax.set_mesh(mesh_of((3, 1, 2))), nn.logical_axis_rules(logical_rules()):
        engine = functools.partial(fused.cudnn, implementation='xla')
        o_BTNH, grads = run(engine, kind, PAST, tokens, tokens, arrays())
    assert distance(o_BTNH, expected_BTNH) < 1e-5
    assert distance(grads, expected) < 1e-4
    assert {(shape[0], shape[2]) for shape in seen} == {(B // 3, N // 2)}


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(1, 1, 1), (3, 1, 2)])
def test_splash_is_the_dense_result_on_one_device_and_on_a_mesh(sizes):
    kind = parse('softmax(mask=window(6), normalizer=sink, softcap=2.0)')
    mesh = mesh_of(sizes)
    expected_BTNH, expected = run(dense.attend, kind, PAST, PACKED, PACKED, arrays())
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_rules()):
        engine = functools.partial(fused.splash, interpret=True)
        o_BTNH, grads = run(engine, kind, PAST, PACKED, PACKED, arrays())
    assert distance(o_BTNH, expected_BTNH) < 1e-5
    assert distance(grads, expected) < 1e-4
    assert not np.asarray(o_BTNH)[PACKED.segments_BT == 0].any()


@pytest.mark.slow
def test_splash_sees_a_whole_other_sequence():
    inputs, engine = arrays(17)[:3], functools.partial(fused.splash, interpret=True)
    expected_BTNH, o_BTNH = (
        forward(
            attend, Softmax(), Segments(), NO_POSITION, inputs, learned(Softmax()), PACKED, MEMORY
        )
        for attend in (dense.attend, engine)
    )
    assert distance(o_BTNH, expected_BTNH) < 1e-5


# --- Refusals -------------------------------------------------------------------------------------

HALF = SiteSpec('decoder', HeadDims(N, K, 64, 64), 'bfloat16', attention_dropout=False)


@pytest.mark.parametrize(
    ('engine', 'attention', 'position', 'message'),
    [
        (
            'chunked',
            'softmax(normalizer=sparsemax)',
            'none',
            'normalizer=sparsemax needs all keys .* dense, blocked',
        ),
        (
            'chunked',
            'softmax(talking="both")',
            'none',
            'talking=both needs all keys of a row at once',
        ),
        ('chunked', 'softmax(talking="before")', 'shaw', ''),
        ('chunked', 'softmax', 'cope', 'the position encoding needs all keys of a row at once'),
        ('blocked', 'softmax', 'none', r'any distance; .* mask=window\(64\)'),
        ('blocked', 'softmax(mask=window(4) | global_tokens(1))', 'none', 'any distance'),
        ('blocked', 'softmax(mask=window(4), normalizer=sparsemax)', 'cope', ''),
        ('cudnn', 'softmax(mask=bigbird)', 'rope', ''),
        ('cudnn', 'softmax(softcap=2.0)', 'none', 'no softcap'),
        ('cudnn', 'softmax(normalizer=sink)', 'none', 'no normalizer but softmax'),
        ('cudnn', 'softmax(forget=True)', 'none', 'no forget gate'),
        (
            'cudnn',
            'softmax',
            'alibi',
            'no scores from a position encoding: none, sinusoidal, learned and rope work',
        ),
        ('splash', 'softmax(normalizer=sink, softcap=2.0, mask=window(4))', 'rope', ''),
        ('splash', 'softmax(normalizer=sigmoid)', 'none', 'softmax, off_by_one and sink'),
        ('splash', 'softmax(mask=strided(4))', 'none', 'band: full and window work'),
        ('splash', 'softmax(talking="before")', 'none', 'heads do not talk'),
        ('splash', 'additive', 'none', 'not the products of queries and keys'),
    ],
)
def test_an_engine_refuses_what_it_cannot_do(engine, attention, position, message):
    found = parse(attention).incompatibility(
        spec.parse(position, POSITIONS, 'model.position'), engine
    )
    assert bool(found) == bool(message)
    assert re.search(message, found)


@pytest.mark.parametrize(
    ('engine', 'attention', 'changes', 'message'),
    [
        ('blocked', 'softmax(mask=window(4))', {'name': 'cross'}, "engine='auto'"),
        ('blocked', 'softmax(mask=window(4))', {}, ''),
        ('cudnn', 'softmax', {}, ''),
        (
            'cudnn',
            'softmax',
            {'dtype': 'float32'},
            "model.dtype='float32', the kernel takes float16 and bfloat16",
        ),
        ('cudnn', 'softmax', {'heads': HeadDims(N, K, 64, 32)}, 'heads of 64 and values of 32'),
        ('cudnn', 'softmax', {'heads': HeadDims(N, K, 60, 60)}, 'multiples of 8'),
        ('cudnn', 'softmax', {'attention_dropout': True}, 'set model.attention_dropout=False'),
        ('cudnn', 'softmax', {'seeds': 4}, 'cannot run the kernel for several seeds'),
        ('splash', 'softmax', {'name': 'cross', 'dtype': 'float32', 'seeds': 4}, ''),
        ('splash', 'softmax(mask=window(4))', {'name': 'cross'}, 'count places'),
        ('splash', 'softmax', {'attention_dropout': True}, 'set model.attention_dropout=False'),
        ('cudnn', 'linear', {'dtype': 'float32'}, ''),  # It has its own algorithm.
    ],
)
def test_an_engine_refuses_where_it_cannot_run(engine, attention, changes, message):
    found = engines.site_incompatibility(engine, parse(attention), HALF._replace(**changes))
    assert (message in found) if message else not found


def experiment(**model):
    config = ExperimentConfig(
        model=ModelConfig(
            **{'encoder_layers': 1, 'decoder_layers': 1, 'd_model': 32, 'd_ff': 32, 'num_heads': 4}
            | model
        )
    )
    return config_lib.replace(config)  # which checks it


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            {'engine': 'chunked', 'encoder_attention': 'softmax(normalizer=entmax15)'},
            r"model.encoder_attention='softmax\(normalizer=entmax15\)' cannot work with "
            r"model.engine='chunked' \(encoder layers\): normalizer=entmax15 needs all keys",
        ),
        (
            {'engine': 'chunked', 'position': 'cope'},
            "'softmax' cannot work with model.engine='chunked'.*position encoding",
        ),
        (
            {'engine': 'blocked', 'attention': 'softmax(mask=window(4))'},
            r"cannot work with model.engine='blocked' \(cross layers\): .*model.engine='auto'",
        ),
        ({'engine': 'cudnn'}, "cannot work with model.engine='cudnn'.*model.dtype='float32'"),
    ],
)
def test_a_configuration_names_the_engine_the_kind_and_the_way_out(model, message):
    with pytest.raises(ConfigError, match=message):
        experiment(**model)


def test_blocks_are_for_self_attention():
    with pytest.raises(ValueError, match='22 queries and 17 keys'):
        run(
            blocked.attend, parse('softmax(mask=window(4))'), Segments(), PACKED, MEMORY, arrays(17)
        )


def test_a_kernel_that_is_not_here_is_refused_before_anything_compiles_but_can_be_inspected(
    monkeypatch,
):
    config = experiment(engine='cudnn', dtype='bfloat16')
    with pytest.raises(
        ConfigError,
        match=r"model\.engine='cudnn' needs an NVIDIA GPU, the devices are cpu",
    ):
        make_program(resolve(config))
    with pytest.raises(ConfigError, match=r"model\.engine='splash' needs a TPU"):
        engines.require_platform('splash')
    monkeypatch.setattr('transformer_jax.profiling.cost_report.GROWTH', (32,))
    config = config_lib.replace(config, data=DataConfig(batching='packed(length=32)'))
    same = dataclasses.replace(config, model=dataclasses.replace(config.model, engine='chunked'))
    assert cost_report(config, 1) == cost_report(same, 1)


# --- What auto chooses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('here', 'attention', 'changes', 'expected'),
    [
        ((), 'softmax', {}, 'dense'),
        ((), 'softmax(mask=window(4))', {}, 'blocked'),
        ((), 'softmax(mask=window(4))', {'name': 'cross'}, 'dense'),
        ((), 'linear', {}, 'own'),
        (('cudnn',), 'softmax', {}, 'cudnn'),
        (('cudnn',), 'softmax', {'dtype': 'float32'}, 'dense'),
        (('cudnn',), 'softmax(softcap=2.0)', {}, 'dense'),
        (('cudnn',), 'softmax(mask=window(4))', {}, 'cudnn'),
        (
            ('cudnn',),
            'softmax(mask=window(4))',
            {'name': 'encoder'},
            'blocked',
        ),  # cuDNN's windows are causal.
        (('cudnn',), 'softmax(mask=strided(4))', {}, 'cudnn'),
        (('splash',), 'softmax(softcap=2.0)', {'dtype': 'float32'}, 'splash'),
        (('splash',), 'additive(mask=window(4))', {}, 'blocked'),
    ],
)
def test_auto_takes_the_best_that_can(monkeypatch, here, attention, changes, expected):
    monkeypatch.setattr(
        engines,
        'is_available',
        lambda engine, platform: engine in here or engine not in engines.KERNELS,
    )
    assert (
        engines.resolve_engine('auto', parse(attention), NO_POSITION, HALF._replace(**changes))
        == expected
    )
    named = engines.resolve_engine('chunked', parse(attention), NO_POSITION, HALF)
    assert named == ('own' if expected == 'own' else 'chunked')


def test_a_model_tells_the_engine_of_every_layer():
    model = ModelConfig(
        encoder_layers=2,
        decoder_layers=6,
        attention='softmax',
        decoder_attention='3*softmax(mask=window(8)), softmax',
    )
    assert resolve_architecture(model, 10).engines() == {
        'encoder': 'dense',
        'decoder': '3*blocked, dense, 2*blocked',
        'cross': 'dense',
    }


def test_decoding_steps_are_dense():
    """A decoding step runs the dense engine, whatever `model.engine` is.

    Here it is an engine that cannot even be traced on a machine without a GPU.
    """
    config = ModelConfig(d_model=16, d_ff=16, num_heads=2, decoder_layers=1, engine='cudnn')
    block, tokens, memory = (
        Block(resolve_architecture(config, 10), 'decoder', 0, crosses=True),
        whole(2, 1),
        whole(2, 5),
    )
    x_BTD = jnp.zeros((2, 5, 16))

    def step(block, x_BTD):
        cache = block.init_cache(x_BTD, memory, 4)
        y_B1D, _ = block.step(
            x_BTD[:, :1], tokens, cache, (block.cross.keys(x_BTD, memory), memory)
        )
        return y_B1D

    y_B1D, _ = jax.eval_shape(
        functools.partial(block.init_with_output, method=step), jax.random.PRNGKey(0), x_BTD
    )
    assert y_B1D.shape == (2, 1, 16)
