"""Position encodings against the papers' formulas in float64, in loops over queries and keys."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model

from transformer_jax import spec
from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.kinds.softmax import KeysValues, Queries, Softmax
from transformer_jax.attention.masks import Causal, Segments, Window
from transformer_jax.batch import Tokens
from transformer_jax.config import resolve
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.multi_head import Projection
from transformer_jax.positions import POSITIONS, sinusoids
from transformer_jax.positions.biases import alibi_slopes, t5_buckets
from transformer_jax.schema import ExperimentConfig, ModelConfig

D = 16


def embedded(text, x_BTD, positions_BT):
    position = spec.parse(text, POSITIONS, 'model.position')
    module = Projection(position.embed, HeadDims(2, 2, 8, 8), 0, position)
    y_BTD, variables = module.init_with_output(jax.random.PRNGKey(0), x_BTD, positions_BT)
    return y_BTD, nn.meta.unbox(variables)


def test_sinusoids_are_the_papers():
    positions_BT = np.array([[0, 1, 2, 7], [63, 500, 4999, 3]])
    table_BTD = sinusoids(positions_BT, D)
    for (b, t), position in np.ndenumerate(positions_BT):
        for i in range(D // 2):
            angle = position / 10000 ** (2 * i / D)
            assert table_BTD[b, t, 2 * i] == pytest.approx(
                math.sin(angle), abs=1e-6 + 2e-7 * position
            )
            assert table_BTD[b, t, 2 * i + 1] == pytest.approx(
                math.cos(angle), abs=1e-6 + 2e-7 * position
            )


def test_a_shift_is_one_rotation_of_every_sinusoid():
    here, there = sinusoids(np.arange(20)[None], D)[0], sinusoids(np.arange(20)[None] + 5, D)[0]
    matrix_DD, *_ = np.linalg.lstsq(
        np.asarray(here, np.float64), np.asarray(there, np.float64), rcond=1e-9
    )
    np.testing.assert_allclose(here @ matrix_DD, there, atol=1e-4)


def test_sinusoidal_adds_and_has_no_parameters():
    x_BTD = np.random.default_rng(0).normal(size=(2, 4, D)).astype(np.float32)
    positions_BT = np.array([[0, 1, 0, 1], [3, 2, 1, 0]])  # from packing, not 0 … T−1
    y_BTD, variables = embedded('sinusoidal', x_BTD, positions_BT)
    assert not jax.tree.leaves(variables)
    np.testing.assert_array_equal(y_BTD, x_BTD + sinusoids(positions_BT, D))
    assert embedded('sinusoidal', x_BTD.astype(jnp.bfloat16), positions_BT)[0].dtype == jnp.bfloat16


def test_learned_positions_add_the_row_of_a_table():
    x_BTD = np.zeros((2, 3, D), np.float32)
    positions_BT = np.array([[0, 1, 0], [6, 2, 1]])
    y_BTD, variables = embedded('learned(max_len=7)', x_BTD, positions_BT)
    (table_TD,) = jax.tree.leaves(variables)
    assert table_TD.shape == (7, D)
    np.testing.assert_array_equal(y_BTD, np.asarray(table_TD)[positions_BT])


def test_none_adds_nothing():
    x_BTD = np.ones((1, 3, D), np.float32)
    y_BTD, variables = embedded('none', x_BTD, np.array([[0, 1, 2]]))
    np.testing.assert_array_equal(y_BTD, x_BTD)
    assert not jax.tree.leaves(variables)


def test_a_table_needs_a_size():
    with pytest.raises(ConfigError, match='max_len=0 is outside'):
        spec.parse('learned(max_len=0)', POSITIONS, 'model.position')


# --- Relative encodings through attention ---------------------------------------------------------

B, T, N, K, H, VALUE_H = 2, 12, 4, 2, 4, 3
SCALE = H**-0.5
MASKS = {'encoder': Segments(), 'decoder': Segments() & Causal()}
# Row 0 has two segments and padding, row 1 one segment.
TOKENS = Tokens(
    np.array([[*range(7), *range(3), 0, 0], [*range(T)]]),
    np.array([7 * [1] + 3 * [2] + 2 * [0], T * [1]]),
)
RELATIVE = [
    'alibi',
    't5(buckets=6, max_distance=8)',
    'shaw(clip=3)',
    'shaw(clip=0, values=False)',
    'transformer_xl',
    "kerple(form='log')",
    "kerple(form='power')",
    'fire(width=5, length=4)',
    'cope(max_positions=4)',
]
sites = pytest.mark.parametrize('site', MASKS)


def parsed(text):
    return spec.parse(text, POSITIONS, 'model.position')


def arrays(seed=0):
    """Return random q_BTNH, k_BSKH, v_BSKH."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(B, T, *shape)).astype(np.float32)
        for shape in ((N, H), (K, H), (K, VALUE_H))
    ]


def attend(position, site, parameters, q, k, v, query, key):
    """Return o_BTNH of softmax attention with a position encoding."""
    attention_inputs = AttentionInputs(
        MASKS[site],
        query,
        key,
        position=position,
        params={'normalizer': ()},
        position_params=parameters,
    )
    return Softmax().attend(Queries(q), KeysValues(k, v), attention_inputs)


run = jax.jit(attend, static_argnums=(0, 1))


def variables(position):
    """Return (parameters of a position encoding, the same arrays by name in float64)."""
    module = Projection(position.params, HeadDims(N, K, H, VALUE_H), 0, position)
    rng = np.random.default_rng(1)
    boxed = module.init(jax.random.PRNGKey(0))
    flat = jax.tree.map(
        lambda a: a + jnp.asarray(rng.normal(size=a.shape), a.dtype),
        nn.meta.unbox(boxed).get('params', {}),
    )
    return module.apply({'params': flat}), {
        name: np.asarray(a, np.float64) for name, a in flat.items()
    }


def paper(site, score, value=lambda n, i, j: 0):
    """Return attention in loops.

    `score(b, n, t, keys)` returns the scores of a query for the keys that it may see, in their
    order.
    """
    q, k, v = (x.astype(np.float64) for x in arrays())
    positions, segments = TOKENS
    o_BTNH = np.zeros((B, T, N, VALUE_H))
    for b, t, n in np.ndindex(B, T, N):
        keys = [
            s
            for s in range(T)
            if segments[b, s] == segments[b, t] != 0
            and (site == 'encoder' or positions[b, s] <= positions[b, t])
        ]
        if keys:
            scores = np.array(
                score(q[b, t, n], k[b, keys, n // (N // K)], n, positions[b, t], positions[b, keys])
            )
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            for weight, s in zip(weights, keys, strict=True):
                o_BTNH[b, t, n] += weight * (
                    v[b, s, n // (N // K)] + value(n, positions[b, t], positions[b, s])
                )
    return o_BTNH


def pairwise(extra):
    """Return scores q·k / √H + extra(q, k, n, i, j), where no key influences another."""
    return lambda q, keys, n, i, places: [
        q @ k * SCALE + extra(q, k, n, i, j) for k, j in zip(keys, places, strict=True)
    ]


def softplus(x):
    return math.log1p(math.exp(x))


def alibi(site, p):
    return pairwise(lambda q, k, n, i, j: -[2**-2, 2**-4, 2**-6, 2**-8][n] * abs(i - j))


def t5(site, p):
    def bucket(i, j):
        if (
            site == 'decoder'
        ):  # 3 buckets of one distance, then 3 wider ones: limits 3 · (8/3)^(m/3) = 3, 4.16, 5.77
            return next(b for b, end in enumerate([1, 2, 3, 5, 6, math.inf]) if i - j < end)
        # 3 on a side: one of one distance, then two wider ones: limits 1 · 8^(m/2) = 1, 2.83
        return 3 * (j > i) + next(b for b, end in enumerate([1, 3, math.inf]) if abs(i - j) < end)

    return pairwise(lambda q, k, n, i, j: p['buckets'][bucket(i, j), n])


def shaw(site, p):
    clip = len(p['keys']) // 2
    return pairwise(
        lambda q, k, n, i, j: q @ p['keys'][min(max(j - i, -clip), clip) + clip] * SCALE
    )


def transformer_xl(site, p):
    def extra(q, k, n, i, j):
        E = N * H
        r = np.array(
            [
                (math.cos if e % 2 else math.sin)((i - j) / 10000 ** (2 * (e // 2) / E))
                for e in range(E)
            ]
        )
        offset = r @ p['kernel'][:, n]
        return (q @ offset + p['content_bias'][n] @ k + p['position_bias'][n] @ offset) * SCALE

    return pairwise(extra)


def kerple_log(site, p):
    return pairwise(
        lambda q, k, n, i, j: (
            -softplus(p['r1'][n]) * math.log(1 + softplus(p['r2'][n]) * abs(i - j))
        )
    )


def kerple_power(site, p):
    return pairwise(
        lambda q, k, n, i, j: (
            -softplus(p['r1'][n]) * abs(int(i - j)) ** (2 / (1 + math.exp(-p['r2'][n])))
        )
    )


def fire(site, p):
    def extra(q, k, n, i, j):
        def psi(x):
            return math.log(abs(p['c']) * x + 1)

        x = psi(abs(i - j)) / psi(max(4 * abs(p['length']), i))
        hidden = [max(x * w + b, 0) for w, b in zip(p['in_kernel'], p['in_bias'], strict=True)]
        return sum(h * w for h, w in zip(hidden, p['out_kernel'][:, n], strict=True))

    return pairwise(extra)


def cope(site, p):
    def scores(q, keys, n, i, places):
        raw = [q @ k * SCALE for k in keys]
        found = []
        for score, j in zip(raw, places, strict=True):
            count = sum(
                1 / (1 + math.exp(-r)) for r, place in zip(raw, places, strict=True) if place >= j
            )
            low = min(math.floor(count), 3)
            high, above = min(low + 1, 3), min(count, 3) - low
            found.append(
                score
                + (1 - above) * (q @ p['embeddings'][low])
                + above * (q @ p['embeddings'][high])
            )
        return found

    return scores


PAPERS = dict(
    zip(
        RELATIVE,
        (alibi, t5, shaw, shaw, transformer_xl, kerple_log, kerple_power, fire, cope),
        strict=True,
    )
)


@sites
@pytest.mark.parametrize('text', RELATIVE)
def test_relative_encodings_are_the_papers(text, site):
    parameters, p = variables(parsed(text))
    value = {}
    if 'values' in p:  # Shaw's
        value = {'value': lambda n, i, j: p['values'][min(max(j - i, -3), 3) + 3]}
    expected = paper(site, PAPERS[text](site, p), **value)
    found = run(parsed(text), site, parameters, *arrays(), TOKENS, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Without the encoding the outputs differ, so that a wrong one would be noticed.
    if text != 'shaw(clip=0, values=False)':  # the same vector for every key
        assert np.abs(paper(site, pairwise(lambda *_: 0)) - expected).max() > 0.1


@pytest.mark.slow
@sites
@pytest.mark.parametrize('text', RELATIVE)
def test_queries_and_keys_may_lie_in_any_order(text, site):
    position, rng = parsed(text), np.random.default_rng(2)
    parameters, _ = variables(position)
    q, k, v = arrays()
    rows, columns = rng.permutation(T), rng.permutation(T)
    query, key = (Tokens(*(a[:, order] for a in TOKENS)) for order in (rows, columns))
    found = run(position, site, parameters, q[:, rows], k[:, columns], v[:, columns], query, key)
    np.testing.assert_allclose(
        found, run(position, site, parameters, q, k, v, TOKENS, TOKENS)[:, rows], atol=2e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'text', [text for text in RELATIVE if text not in ('alibi', 'shaw(clip=0, values=False)')]
)
def test_every_parameter_gets_a_gradient(text):
    position = parsed(text)
    parameters, _ = variables(position)
    r = np.random.default_rng(3).normal(size=(B, T, N, VALUE_H))
    inputs = arrays()
    grads = jax.jit(
        jax.grad(
            lambda parameters: (
                attend(position, 'encoder', parameters, *inputs, TOKENS, TOKENS) * r
            ).sum()
        )
    )(parameters)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
        rows = np.abs(np.asarray(leaf)).reshape(len(leaf) if leaf.ndim else 1, -1).max(-1)
        if 'fire' in text:  # some of its ReLUs may start at 0 for all inputs
            assert rows.any()
        else:  # all rows of all tables, except the T5 bucket of distance 0 ahead
            assert np.flatnonzero(rows == 0).tolist() == ([3] if 't5' in text else [])


def test_contextual_positions_count_in_a_ring_cache_what_they_count_at_once():
    position, kind, mask = (
        parsed('cope(max_positions=4)'),
        Softmax(mask=Window(5)),
        Segments() & Causal() & Window(5),
    )
    parameters, _ = variables(position)
    inputs, row = arrays(), Tokens(np.arange(T)[None].repeat(B, 0), np.ones((B, T), int))

    def attention_inputs(tokens):
        return AttentionInputs(
            mask,
            tokens,
            tokens,
            position=position,
            params={'normalizer': ()},
            position_params=parameters,
        )

    q, k, v = inputs
    expected = kind.attend(Queries(q), KeysValues(k, v), attention_inputs(row))
    cache = kind.init_cache(KeysValues(k, v), T, mask)
    assert cache.tokens.positions_BT.shape == (B, 5)  # the ring is overwritten twice
    step, found = (
        jax.jit(
            lambda q, k, v, row, cache: kind.step(
                Queries(q), KeysValues(k, v), attention_inputs(row), cache
            )
        ),
        [],
    )
    for t in range(T):
        o_B1NH, cache = step(*jax.tree.map(lambda a: a[:, t : t + 1], (q, k, v, row)), cache)  # noqa: B023
        found.append(o_B1NH)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=2e-6)


@pytest.mark.parametrize(
    ('heads', 'expected'),
    [
        (1, [1 / 256]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (
            12,
            [
                1 / 2,
                1 / 4,
                1 / 8,
                1 / 16,
                1 / 32,
                1 / 64,
                1 / 128,
                1 / 256,
                0.7071067811865476,
                0.3535533905932738,
                0.1767766952966369,
                0.08838834764831845,
            ],
        ),
    ],
)
def test_alibi_slopes_are_the_papers(heads, expected):
    np.testing.assert_allclose(alibi_slopes(heads), expected, rtol=1e-12)


def test_t5_buckets_are_the_papers():
    # 32 buckets to 128. One way: 16 of one distance, then limits 16 · 8^(m/16) = 18.2, 20.7, 23.6,
    # 26.9, 30.6, 34.9, …
    one_way = t5_buckets(
        np.array([-5, 0, 1, 15, 16, 18, 19, 20, 21, 31, 112, 113, 127, 128, 9999]), 32, 128, True
    )
    np.testing.assert_array_equal(
        one_way, [0, 0, 1, 15, 16, 16, 17, 17, 18, 21, 30, 31, 31, 31, 31]
    )
    # Both ways: 8 of one distance, then limits 8 · 16^(m/8) = 11.3, 16, 22.6, 32, 45.3, 64, 90.5;
    # ahead 16 more.
    distances = np.array(
        [0, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 128, 9999]
    )
    expected = np.array([0, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15])
    np.testing.assert_array_equal(t5_buckets(distances, 32, 128, False), expected)
    np.testing.assert_array_equal(
        t5_buckets(-distances, 32, 128, False), expected + 16 * (distances > 0)
    )


@pytest.mark.parametrize(('text', 'tables'), [('t5', 2), ('t5(shared=False)', 4)])
def test_t5_has_one_table_a_stack_unless_told_otherwise(text, tables, tiny, make_batch):
    batch = make_batch([[((4, 5), (6, 7))]], 2)
    params = jax.eval_shape(build_model(tiny(position=text), 9).init, jax.random.PRNGKey(0), batch)
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(params))
    ]
    found = [path for path in paths if 'buckets' in path]
    assert len(found) == tables
    assert not any('cross' in path for path in found)


def test_t5_takes_its_numbers_in_order():
    assert parsed('t5(16, 64)') == parsed('t5(buckets=16, max_distance=64)')
    assert (
        spec.text(parsed('t5(shared=False, buckets=16)'), POSITIONS)
        == 't5(shared=False, buckets=16)'
    )


# --- Rotary ---------------------------------------------------------------------------------------

ROPE_H = 8
ROTARY = [
    'rope',
    "rope(pairs='interleaved')",
    'rope(fraction=0.5)',
    'rope(scaling=linear(4))',
    'rope(scaling=ntk(4))',
    'rope(scaling=yarn(4, original=8, beta_fast=2, beta_slow=0.5))',
]


def rotated(text, x_BTNH, positions_BT):
    return parsed(text).rotate(jnp.asarray(x_BTNH), jnp.asarray(positions_BT))


def vectors(seed=0):
    return np.random.default_rng(seed).normal(size=(1, 6, 2, ROPE_H)).astype(np.float32)


@pytest.mark.parametrize('pairs', ['half', 'interleaved'])
def test_rope_turns_each_pair_as_a_complex_number(pairs):
    x, positions = vectors(), np.array([[0, 1, 2, 17, 3, 250]])
    found = np.asarray(rotated(f'rope(theta=100, fraction=0.75, pairs={pairs!r})', x, positions))
    for (t, n), i in [(place, i) for place in np.ndindex(6, 2) for i in range(3)]:
        first, second = (i, i + 3) if pairs == 'half' else (2 * i, 2 * i + 1)
        z = complex(x[0, t, n, first], x[0, t, n, second]) * np.exp(
            1j * positions[0, t] * 100 ** (-2 * i / 6)
        )
        assert complex(found[0, t, n, first], found[0, t, n, second]) == pytest.approx(z, abs=1e-4)
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


@pytest.mark.parametrize('text', ROTARY)
def test_rotary_products_depend_on_the_offset_alone(text):
    q, k, at = vectors(1), vectors(2), np.array([[0, 1, 5, 2, 9, 4]])

    def products(shift):
        return jnp.einsum(
            'BTNH,BSNH->BNTS', rotated(text, q, at + shift), rotated(text, k, at + shift)
        )

    np.testing.assert_allclose(products(300), products(0), atol=2e-4)
    assert np.abs(products(0) - jnp.einsum('BTNH,BSNH->BNTS', q, k)).max() > 0.1


@pytest.mark.parametrize('text', ROTARY)
def test_rotation_keeps_norms_and_dtype(text):
    x, at = vectors(), np.array([[0, 1, 5, 2, 9, 400]])
    gain = 0.1 * math.log(4) + 1 if 'yarn' in text else 1
    np.testing.assert_allclose(
        jnp.linalg.norm(rotated(text, x, at), axis=-1), gain * np.linalg.norm(x, axis=-1), rtol=1e-5
    )
    half = rotated(text, x.astype(jnp.bfloat16), at)
    assert half.dtype == jnp.bfloat16
    # Angles in bfloat16 would be wrong by a radian at position 400.
    np.testing.assert_allclose(half.astype(np.float32), rotated(text, x, at), atol=0.03)


def test_linear_scaling_divides_positions():
    at = np.array([[0, 4, 8, 12, 400, 40]])
    np.testing.assert_allclose(
        rotated('rope(scaling=linear(4))', vectors(), at),
        rotated('rope', vectors(), at // 4),
        atol=1e-6,
    )


@pytest.mark.parametrize('scaling', ['linear(1)', 'ntk(1)', 'yarn(1, original=64)'])
def test_a_factor_of_one_scales_nothing(scaling):
    at = np.array([[0, 4, 8, 12, 400, 40]])
    np.testing.assert_array_equal(
        rotated(f'rope(scaling={scaling})', vectors(), at), rotated('rope', vectors(), at)
    )


def test_ntk_scaling_is_another_base():
    at = np.array([[0, 4, 8, 12, 400, 40]])
    base = 10000 * 4 ** (ROPE_H / (ROPE_H - 2))
    np.testing.assert_allclose(
        rotated('rope(scaling=ntk(4))', vectors(), at),
        rotated(f'rope(theta={base})', vectors(), at),
        atol=2e-5,
    )
    rates = parsed('rope(scaling=ntk(4))').scaling.rates(1e4 ** (-np.arange(4) / 4))
    # The fastest pair is unchanged, the slowest is interpolated.
    np.testing.assert_allclose(rates[[0, -1]], [1, 1e-3 / 4])
    np.testing.assert_array_equal(parsed('rope(scaling=ntk(4))').scaling.rates(np.ones(1)), 1)


def test_yarn_slows_each_pair_by_how_often_it_turns():
    # 10000^(−i/4) · 1024 / 2π = 163, 16.3, 1.63, 0.163 turns in training; the ramp goes from 1
    # to 32.
    rates = parsed('rope(scaling=yarn(8, original=1024))').scaling.rates(1e4 ** (-np.arange(4) / 4))
    ramps = [(1024 * 0.1 / 2 / math.pi - 1) / 31, (1024 * 0.01 / 2 / math.pi - 1) / 31]
    expected = [
        1,
        0.1 * (ramps[0] + (1 - ramps[0]) / 8),
        0.01 * (ramps[1] + (1 - ramps[1]) / 8),
        0.001 / 8,
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    np.testing.assert_allclose(ramps, [0.493, 0.020], atol=1e-3)


def test_yarn_sharpens_scores_by_its_temperature():
    at = np.zeros((1, 6), int)
    q, k = (rotated('rope(scaling=yarn(8, original=64))', vectors(seed), at) for seed in (1, 2))
    np.testing.assert_allclose(
        (q * k).sum(-1),
        (0.1 * math.log(8) + 1) ** 2 * (vectors(1) * vectors(2)).sum(-1),
        rtol=1e-5,
        atol=1e-5,
    )


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('rope(fraction=0)', 'fraction=0.0 is outside'),
        ('rope(theta=1)', 'theta=1.0 is outside'),
        ("rope(pairs='odd')", "pairs='odd', it takes half, interleaved"),
        ('rope(scaling=linear(0.5))', 'factor=0.5 is outside'),
        ('rope(scaling=linear)', 'lacks the argument factor of linear'),
        ('rope(scaling=yarn(2))', 'lacks the argument original of yarn'),
        ('rope(scaling=yarn(2, original=0))', 'original=0 is outside'),
        (
            'rope(scaling=yarn(2, original=8, beta_fast=1))',
            'beta_fast=1.0 must be more than beta_slow=1.0',
        ),
        ('t5(buckets=7)', 'buckets=7, it takes an even number'),
        ('t5(buckets=32, max_distance=16)', 'max_distance=16 must be more than half of buckets=32'),
        ('shaw(clip=-1)', 'clip=-1 is outside'),
        ("kerple(form='exp')", "form='exp', it takes log, power"),
        ('fire(width=0)', 'width=0 is outside'),
        ('fire(length=0)', 'length=0.0 is outside'),
        ('cope(max_positions=1)', 'max_positions=1 is outside'),
    ],
)
def test_options_out_of_range_are_refused(text, said):
    with pytest.raises(ConfigError, match=said.replace('(', r'\(')):
        parsed(text)


@pytest.mark.parametrize(
    ('text', 'width'), [('rope', 9), ('rope(fraction=0.5)', 6), ('rope(fraction=0.1)', 4)]
)
def test_rotations_need_pairs(text, width):
    def checked(head_dim):
        config = ExperimentConfig(model=ModelConfig(position=text, head_dim=head_dim))
        resolve(config)

    with pytest.raises(
        ConfigError, match=f'of the {width} dimensions of a head .* works on pairs of dimensions'
    ):
        checked(width)
    checked(20)
