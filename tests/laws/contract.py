"""Checks of what an attention kind supports, which run on any kind.

A check takes a `Site`: the attention of one layer with its parameters, at one place of a model. It
includes the projections, the gate and the output projection, so that a check needs no knowledge of
the kind. One compiled program, `Site.run`, serves most checks: it returns the outputs, and the
gradients of their product with a given cotangent.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.cache import reorder
from transformer_jax.attention.masks import Full, Segments
from transformer_jax.batch import Tokens
from transformer_jax.config import resolve_architecture
from transformer_jax.models.multi_head import PAST, MultiHead
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import MeshConfig, ModelConfig

B, T, D, N = 3, 20, 16, 4
MASKS = {'encoder': Segments(), 'decoder': PAST, 'cross': Segments()}
SITE_CAPABILITY = {'encoder': 'encoder', 'decoder': 'causal', 'cross': 'cross'}


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind with its options, its position encoding, its key-value heads and its engine."""

    attention: str
    position: str = 'none'
    kv_heads: int = N
    engine: str = 'auto'

    def __str__(self):
        extras = [self.position] * (self.position != 'none') + [f'K={self.kv_heads}'] * (
            self.kv_heads != N
        )
        return ' '.join([self.attention, *extras, *[self.engine] * (self.engine != 'auto')])

    def config(self, **changes) -> ModelConfig:
        """Return the configuration of a model with this attention; `changes` are further keys."""
        return ModelConfig(
            **{
                'd_model': D,
                'd_ff': 32,
                'num_heads': N,
                'num_kv_heads': self.kv_heads,
                'attention': self.attention,
                'position': self.position,
                'engine': self.engine,
            }
            | changes
        )


@functools.cache
def site(case: Case, name: str) -> 'Site':
    """Return the Site of a case and place; all checks share it."""
    return Site(case, name)


class Site:
    """The attention of a case at 'encoder', 'decoder' or 'cross', with parameters."""

    def __init__(
        self, case: Case, name: str, params=None, layer: int = 1, context: int = 1, **changes
    ):
        self.case, self.name = case, name
        architecture = resolve_architecture(case.config(**changes), 10, context=context)
        self.module = MultiHead(architecture, name, layer)
        self.kind, self.mask = self.module.architecture.attention_at(name, 1).kind, MASKS[name]
        self.run, self.forward = jax.jit(self._run), jax.jit(self._forward)
        self.take_step = jax.jit(self._step)
        if params is None:
            params = self._random_params()
        self.params = params

    def _random_params(self):
        """Return random parameters.

        No element is 0 or 1: a parameter that is 0 everywhere would hide an error.
        """
        arguments = inputs(0), whole(B, T), inputs(0), whole(B, T)
        shapes = nn.meta.unbox(
            jax.eval_shape(
                lambda rng: self.module.init(rng, *arguments, method=self._attend),
                jax.random.PRNGKey(3),
            )
        )['params']
        leaves, tree = jax.tree.flatten(shapes)
        rng = np.random.default_rng(5)
        return tree.unflatten(
            [
                jnp.asarray(
                    rng.normal(scale=leaf.shape[0] ** -0.5, size=leaf.shape)
                    if leaf.ndim > 1
                    else 1 + 0.2 * rng.normal(size=leaf.shape),
                    leaf.dtype,
                )
                for leaf in leaves
            ]
        )

    def _attend(self, module, x_BTD, tokens, memory_BSD, memory_tokens):
        keys = module.keys(memory_BSD, memory_tokens)
        return module(x_BTD, keys, AttentionInputs(self.mask, tokens, memory_tokens), None)

    def _forward(self, params, x_BTD, tokens, memory_BSD=None, memory_tokens=None):
        if self.name != 'cross':
            memory_BSD, memory_tokens = x_BTD, tokens
        return self.module.apply(
            {'params': params}, x_BTD, tokens, memory_BSD, memory_tokens, method=self._attend
        )

    def _run(self, params, r_BTD, x_BTD, tokens, memory_BSD=None, memory_tokens=None):
        def product(params, x_BTD, memory_BSD):
            o_BTD = self._forward(params, x_BTD, tokens, memory_BSD, memory_tokens)
            return (o_BTD.astype(jnp.float32) * r_BTD).sum(), o_BTD

        wrt = (0, 1) if memory_BSD is None else (0, 1, 2)
        grads, o_BTD = jax.grad(product, wrt, has_aux=True)(params, x_BTD, memory_BSD)
        return o_BTD, grads

    def _step(self, params, x_BTD, tokens, cache):
        inputs = AttentionInputs(PAST, tokens, tokens)
        return self.module.apply({'params': params}, x_BTD, inputs, cache, method='step')

    def init_cache(self, x_BTD, length):
        """Return an empty cache for rows like those of `x_BTD`."""
        tokens = whole(len(x_BTD), 1)
        return self.module.apply(
            {'params': self.params}, x_BTD[:, :1], tokens, length, PAST, method='init_cache'
        )

    def arguments(self, seed: int, tokens: Tokens, memory_tokens: Tokens | None = None) -> tuple:
        """Return random arguments for `run` and `forward`, after the cotangent; B rows."""
        x_BTD = inputs(seed, *tokens.positions_BT.shape)
        if self.name != 'cross':
            return x_BTD, tokens
        return x_BTD, tokens, inputs(seed + 100, *memory_tokens.positions_BT.shape), memory_tokens


def inputs(seed: int, rows: int = B, length: int = T) -> np.ndarray:
    """Return random float32 x_BTD."""
    return np.random.default_rng(seed).normal(size=(rows, length, D)).astype(np.float32)


def whole(rows: int, length: int, start: int = 0) -> Tokens:
    """Return the tokens of rows with one segment, from position `start`, without padding."""
    positions_BT = np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (rows, length))
    return Tokens(positions_BT, np.ones_like(positions_BT))


def packed(*rows: tuple[int, ...], length: int = T) -> Tokens:
    """Return the tokens of rows with segments of the given lengths, then padding."""
    positions_BT, segments_BT = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for segment, size in enumerate(lengths, 1):
            positions_BT[row, start : start + size] = range(size)
            segments_BT[row, start : start + size] = segment
            start += size
    return Tokens(positions_BT, segments_BT)


def distance(found, expected) -> float:
    """Return ‖found − expected‖ / ‖expected‖, over all leaves together."""
    found, expected = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def cotangent(seed: int = 9, rows: int = B, length: int = T) -> np.ndarray:
    """Return random r_BTD, by which outputs are multiplied before they are summed."""
    return inputs(seed, rows, length)


# --- The checks -----------------------------------------------------------------------------------


def causality_by_gradient(at: Site) -> None:
    """No output depends on a later input.

    Where mask and normalizer allow it, each output depends on every earlier input.
    """
    r_BTD, rows = np.zeros((B, T, D), np.float32), [(0, 3), (1, 11), (2, T - 1)]
    for row, t in rows:
        r_BTD[row, t] = cotangent()[row, t]
    _, (_, dx_BTD) = at.run(at.params, r_BTD, *at.arguments(1, whole(B, T)))
    size_BT = np.abs(dx_BTD).max(-1)
    for row, t in rows:
        assert not size_BT[row, t + 1 :].any(), (
            f'the output at {t} depends on inputs at {np.flatnonzero(size_BT[row])}'
        )
        if sees_all(at):
            assert size_BT[row, : t + 1].all(), (
                f'the output at {t} forgets {np.flatnonzero(size_BT[row, : t + 1] == 0)}'
            )


def causality_by_intervention(at: Site) -> None:
    """Other inputs from position t on change no output before t.

    This includes outputs that depend on the inputs by sorting, by hashing or through a maximum.
    """
    (x_BTD, tokens), t = at.arguments(2, whole(B, T)), 9
    changed_BTD = x_BTD.copy()
    changed_BTD[:, t:] = 10 * inputs(3)[:, t:]
    before, after = at.forward(at.params, x_BTD, tokens), at.forward(at.params, changed_BTD, tokens)
    np.testing.assert_allclose(after[:, :t], before[:, :t], atol=2e-6)
    assert np.abs(after[:, t:] - before[:, t:]).max() > 1e-3


def padding_has_no_influence(at: Site) -> None:
    """The contents of padding change no output, exactly, and get no gradient."""
    tokens = packed((11,), (T,), (1,))
    arguments = at.arguments(4, tokens, packed((5,), (17,), (9,)))
    padded = [list(arguments), list(arguments)]
    for place in range(0, len(arguments), 2):
        padding_BT1 = (arguments[place + 1].segments_BT == 0)[..., None]
        padded[1][place] = np.where(padding_BT1, 50 * inputs(7), arguments[place])
    real_BT1 = (tokens.segments_BT != 0)[..., None]
    (o_BTD, grads), (other_BTD, other_grads) = (
        at.run(at.params, cotangent() * real_BT1, *a) for a in padded
    )
    np.testing.assert_array_equal(o_BTD * real_BT1, other_BTD * real_BT1)
    for place, (grad_BTD, other) in enumerate(zip(grads[1:], other_grads[1:], strict=True)):
        padding_BT = arguments[2 * place + 1].segments_BT == 0
        assert not np.asarray(grad_BTD)[padding_BT].any()
        np.testing.assert_array_equal(
            np.asarray(grad_BTD)[~padding_BT], np.asarray(other)[~padding_BT]
        )


def rows_that_see_nothing_are_zero(at: Site) -> None:
    """Queries without an allowed key give exactly 0, with finite gradients.

    These are padded queries, and queries whose keys are all padded.
    """
    tokens = packed((11,), (), (T,))
    arguments = at.arguments(5, tokens, packed((), (6,), (T,)))
    o_BTD, grads = at.run(at.params, cotangent(), *arguments)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((o_BTD, grads)))
    nothing = [(0, slice(11, None)), (1, slice(None))]
    for row, times in [*nothing, (0, slice(None))] if at.name == 'cross' else nothing:
        assert not np.asarray(o_BTD)[row, times].any()


def packed_is_separate(at: Site) -> None:
    """A segment gets the same outputs in a packed row as in a row of its own."""
    tokens = packed((7, 9), (7,), (9,))
    arguments = list(at.arguments(6, tokens, packed((5, 11), (5,), (11,))))
    for place in range(0, len(arguments), 2):
        first, second = [(7, 9), (5, 11)][place // 2]
        x_BTD = arguments[place]
        x_BTD[1, :first], x_BTD[2, :second] = x_BTD[0, :first], x_BTD[0, first : first + second]
    o_BTD = np.asarray(at.forward(at.params, *arguments))
    assert distance(o_BTD[0, :7], o_BTD[1, :7]) < 1e-5
    assert distance(o_BTD[0, 7:16], o_BTD[2, :9]) < 1e-5


def order_and_amount_of_padding_do_not_matter(at: Site) -> None:
    """The outputs do not depend on the order of rows or on padding at their end."""
    arguments = at.arguments(8, packed((7,), (12,), (3,)), packed((9,), (2,), (12,)))
    o_BTD = np.asarray(at.forward(at.params, *arguments))
    swapped = jax.tree.map(lambda a_BT: a_BT[[2, 0, 1]], arguments)
    np.testing.assert_allclose(at.forward(at.params, *swapped), o_BTD[[2, 0, 1]], atol=2e-6)
    shorter = jax.tree.map(lambda a_BT: a_BT[:, :12], arguments)
    assert distance(at.forward(at.params, *shorter), o_BTD[:, :12]) < 1e-5


def cached_is_teacher_forced(at: Site) -> None:
    """Decoding token by token gives the outputs of all tokens at once.

    The rows are beams of one row, and change their order on the way.
    """
    rows, change = np.array([2, 0, 0]), 6
    first_BTD, second_BTD = inputs(10), inputs(11)
    x_BTD = np.concatenate([first_BTD[rows, :change], second_BTD[:, change:]], axis=1)
    expected_BTD = np.asarray(at.forward(at.params, x_BTD, whole(B, T)))
    cache, found = reorder(at.init_cache(first_BTD[:1], B * T), jnp.zeros((1, B), jnp.int32)), []
    for t in range(T):
        if t == change:
            cache = reorder(cache, jnp.asarray(rows)[None])
            found = [np.asarray(o_B1D)[rows] for o_B1D in found]
        x_B1D = (first_BTD if t < change else second_BTD)[:, t : t + 1]
        o_B1D, cache = at.take_step(at.params, x_B1D, whole(B, 1, start=t), cache)
        found.append(o_B1D)
    assert distance(np.concatenate(found, axis=1), expected_BTD) < 1e-5


def prefill_is_decoding_from_the_start(at: Site) -> None:
    """A padded step of prompts, then single tokens, gives the outputs of all tokens at once.

    The prompts have different lengths.
    """
    lengths, width, steps = (7, 2, 5), 7, 6
    x_BTD = inputs(12)
    expected_BTD = np.asarray(at.forward(at.params, x_BTD, whole(B, T)))
    prompt = packed(*((n,) for n in lengths), length=width)
    o_BTD, cache = at.take_step(
        at.params, x_BTD[:, :width], prompt, at.init_cache(x_BTD, width + steps)
    )
    for row, n in enumerate(lengths):
        assert distance(np.asarray(o_BTD)[row, :n], expected_BTD[row, :n]) < 1e-5
    for step in range(steps):
        at_B = np.array(lengths) + step
        tokens = Tokens(at_B[:, None].astype(np.int32), np.ones((B, 1), np.int32))
        o_B1D, cache = at.take_step(at.params, x_BTD[np.arange(B), at_B][:, None], tokens, cache)
        assert distance(np.asarray(o_B1D)[:, 0], expected_BTD[np.arange(B), at_B]) < 1e-5


def engines_agree(at: Site) -> None:
    """All engines give the outputs of the dense one to 1e-5, and its gradients to 1e-4."""
    tokens = packed((7, 9), (T,), (3, 4, 5))
    arguments = cotangent(), *at.arguments(13, tokens, packed((6, 10), (4,), (9, 1, 2)))
    dense = Site(at.case, at.name, at.params, engine='dense') if at.kind.engines else at
    expected_BTD, expected_grads = dense.run(at.params, *arguments)
    for engine in at.kind.engines:
        if engine in ('dense', 'cudnn', 'splash') or at.kind.incompatibility(
            at.module.architecture.attention_at(at.name, 1).position, engine
        ):
            continue
        if engine == 'blocked' and at.name == 'cross':
            continue
        o_BTD, grads = Site(at.case, at.name, at.params, engine=engine).run(at.params, *arguments)
        assert distance(o_BTD, expected_BTD) < 1e-5, engine
        assert distance(grads, expected_grads) < 1e-4, engine


def bfloat16_is_close(at: Site) -> None:
    """In bfloat16 the outputs are within 2e-2 of those in float32.

    Inputs and parameters are rounded to bfloat16 first, so that both start from the same numbers.
    """

    def rounded(tree):
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16).astype(jnp.float32), tree)

    params, tokens = (
        rounded(at.params),
        packed((7, 9) if 'segments' in at.kind.supports() else (16,), (T,), (3,)),
    )
    arguments = [
        a if isinstance(a, Tokens) else rounded(a)
        for a in at.arguments(14, tokens, packed((6, 8) if len(tokens) > 1 else (6,), (T,), (9,)))
    ]
    half = Site(at.case, at.name, at.params, dtype='bfloat16')
    halved = [a if isinstance(a, Tokens) else jnp.asarray(a, jnp.bfloat16) for a in arguments]
    o_BTD = half.forward(params, *halved)
    assert o_BTD.dtype == jnp.bfloat16
    assert distance(o_BTD, at.forward(params, *arguments)) < 2e-2


def transformations_leave_it_equal(at: Site) -> None:
    """jit, vmap and rematerialization change no output and no gradient."""
    arguments = cotangent(), *at.arguments(15, packed((16,), (T,), (3,)), packed((8,), (T,), (9,)))
    expected_BTD, expected = at.run(at.params, *arguments)
    assert distance(at._forward(at.params, *arguments[1:]), expected_BTD) < 1e-6
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), at.params)

    def rematerialized(params):
        def product(params):
            o_BTD = jax.checkpoint(at._forward)(params, *arguments[1:])
            return (o_BTD * arguments[0]).sum(), o_BTD

        grads, o_BTD = jax.grad(product, has_aux=True)(params)
        return o_BTD, grads

    o_2BTD, grads = jax.jit(jax.vmap(rematerialized))(several)
    assert distance(o_2BTD[0], expected_BTD) < 1e-5
    assert distance(jax.tree.map(lambda leaf: leaf[0], grads), expected[0]) < 1e-5


def layers_compute_the_same(at: Site) -> None:
    """With equal parameters, unless the kind says that it reads the number of its layer."""
    arguments = at.arguments(27, whole(B, T), whole(B, T))
    other = Site(at.case, at.name, at.params, layer=3)
    equal = distance(other.forward(at.params, *arguments), at.forward(at.params, *arguments)) == 0
    assert equal != at.kind.reads_layer


def sees_all(at: Site) -> bool:
    """Return whether every earlier key takes part in every output.

    That holds for kinds without a mask, whose normalizer gives no exact zeros.
    """
    normalizer = getattr(at.kind, 'normalizer', None)
    return at.kind.mask == Full() and (normalizer is None or normalizer.dense)


def pieces_are_whole_rows(at: Site) -> None:
    """Rows cut over 8 devices give the outputs of one device to 1e-5, and its gradients.

    Segments end within pieces, at their ends and pieces later; some pieces are padding alone.
    """
    tokens = packed((20, 9), (32,), (3, 5, 8), length=32)
    memory_tokens = packed((7, 20), (9,), (16, 2, 30), length=48)
    arguments = cotangent(length=32), *at.arguments(17, tokens, memory_tokens)
    expected_BTD, expected_grads = at.run(at.params, *arguments)
    mesh = MeshConfig(data=1, context=8)
    cut = Site(at.case, at.name, at.params, context=mesh.context)
    run = Partitioner(mesh).compile(cut._run)
    o_BTD, grads = run(at.params, *arguments)
    assert distance(o_BTD, expected_BTD) < 1e-5
    assert distance(grads, expected_grads) < 1e-5


# The capabilities that a check needs, in addition to that of the site.
CHECKS = {
    causality_by_gradient: {'causal'},
    causality_by_intervention: {'causal'},
    padding_has_no_influence: {'padding'},
    rows_that_see_nothing_are_zero: {'padding'},
    packed_is_separate: {'segments'},
    order_and_amount_of_padding_do_not_matter: {'padding'},
    cached_is_teacher_forced: {'decode', 'causal'},
    prefill_is_decoding_from_the_start: {'decode', 'causal'},
    engines_agree: {'segments'},
    bfloat16_is_close: set(),
    transformations_leave_it_equal: set(),
    layers_compute_the_same: set(),
    pieces_are_whole_rows: {'context', 'segments'},
}


def applies(check, at_name: str, capabilities: frozenset[str]) -> bool:
    """Return whether a check applies at a site to a kind with these capabilities."""
    needs = CHECKS[check] | {SITE_CAPABILITY[at_name]}
    return needs <= capabilities and ('causal' not in CHECKS[check] or at_name == 'decoder')
