"""Fused kernels of accelerators: cuDNN's on NVIDIA GPUs, splash attention on TPUs.

Both give the results of the dense engine. A query that may see nothing gives exactly 0, where the
kernels themselves give the mean of the values. Positions restart in every segment. What a kernel
has no argument for is refused by name.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes

from transformer_jax.attention.engines.tiles import SiteSpec, pad_time
from transformer_jax.attention.mask_base import And, Mask
from transformer_jax.attention.masks import Causal, Full, Segments, Window
from transformer_jax.attention.normalizers import Exponential, Softmax
from transformer_jax.batch import Tokens

Axes = tuple[str | None, ...]
HALF = ('float16', 'bfloat16')
CUDNN_HEAD_DIM = 128  # the limit of GPUs before Hopper, which takes 256
LANES = 128  # of a TPU's vector register: splash takes lengths that are multiples of it
SPLASH_BLOCK = 512
NO_BOUND = (math.inf, math.inf)
# Logical axes of what a kernel is given, see `_shard_over_mesh`.
QUERIES, KEYS = ('batch', None, 'heads'), ('batch', None, 'kv_heads')


def band(mask: Mask) -> tuple[float, float] | None:
    """Return (back, ahead) of a mask that allows every key of the segment within that distance.

    None for a mask of any other shape.
    """
    if isinstance(mask, And):
        left, right = band(mask.left), band(mask.right)
        if left is None or right is None:
            return None
        return min(left[0], right[0]), min(left[1], right[1])
    return mask.reach() if isinstance(mask, Segments | Full | Causal | Window) else None


def _score_incompatibility(kind: Any, position: Any) -> str:
    if position.acts_on_scores():
        return (
            'the kernel takes no scores from a position encoding: none, sinusoidal, learned and '
            'rope work'
        )
    return kind.kernel_incompatibility()


def cudnn_incompatibility(kind: Any, position: Any) -> str:
    """Explain what cuDNN's kernel has no argument for; '' where it can run the kind."""
    if type(kind.normalizer) is not Softmax:
        return 'the kernel has no normalizer but softmax'
    why = _score_incompatibility(kind, position)
    return why or ('the kernel has no softcap' if kind.softcap else '')


def splash_incompatibility(kind: Any, position: Any) -> str:
    """Explain what the splash kernel has no argument for; '' where it can run the kind."""
    if not isinstance(kind.normalizer, Exponential):
        return 'the kernel has no normalizers but softmax, off_by_one and sink'
    if band(kind.mask) is None:
        return 'the kernel takes its mask as a band: full and window work'
    return _score_incompatibility(kind, position)


def cudnn_site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Explain which size, dtype or dropout cuDNN's kernel does not take; '' where it can run."""
    heads = site.heads
    if site.dtype not in HALF:
        return f'model.dtype={site.dtype!r}, the kernel takes {" and ".join(HALF)}'
    if heads.head_dim != heads.value_dim or heads.head_dim % 8 or heads.head_dim > CUDNN_HEAD_DIM:
        return (
            f'heads of {heads.head_dim} and values of {heads.value_dim}: the kernel takes equal '
            f'sizes, multiples of 8, of at most {CUDNN_HEAD_DIM}'
        )
    if site.seeds > 1:  # JAX reshapes a mask that all heads share as if each had its own.
        return (
            f'train.num_seeds={site.seeds}, and JAX cannot run the kernel for several seeds in one '
            'program: set model.engine=auto'
        )
    return _dropout_incompatibility(site)


def splash_site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Explain where the splash kernel cannot run; '' where it can.

    Its mask is by index in the arrays. Between two sequences that is not the distance of positions.
    """
    if site.name == 'cross' and not isinstance(kind.mask, Full):
        return (
            "the kernel's windows count places in arrays, which between two sequences are no "
            'positions'
        )
    return _dropout_incompatibility(site)


def _dropout_incompatibility(site: SiteSpec) -> str:
    if not site.attention_dropout:
        return ''
    return 'the kernel drops no weights: set model.attention_dropout=False'


def skips_tiles(kind: Any, site: SiteSpec) -> bool:
    """Return whether cuDNN's kernel can take the mask as lengths, causality and a window.

    It then skips tiles that no query may see. With the mask as a matrix it computes all of them.
    """
    reach = band(kind.mask)
    return reach == NO_BOUND or (reach is not None and site.name == 'decoder')


def cudnn(
    kind: Any,
    queries: Any,
    keys: Any,
    inputs: Any,
    implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
    """Return o_BTNH by `jax.nn.dot_product_attention`.

    Where every row is one segment and then padding, the kernel gets lengths, causality and the
    window. Where rows are packed, or the mask is not a band, it gets the whole mask as a matrix,
    which takes about 2.5 times as long. Which of these holds depends on the batch, so both are
    compiled.

    Args:
        kind: a kind that `cudnn_incompatibility` allows.
        queries: leaves [B, T, …].
        keys: leaves [B, S, …].
        inputs: mask, tokens and parameters.
        implementation: 'cudnn', or 'xla', which computes the same on any machine.
    """
    allowed_BTS = inputs.allowed_BTS()
    tile = kind.tile(queries, keys, inputs, allowed_BTS)
    q_BTNH, k_BSKH, v_BSKH = tile.q_BTNH, tile.k_BSKH, kind.values(keys)

    kernel = functools.partial(_run_cudnn, scale=tile.scale, implementation=implementation)

    def by_matrix() -> jax.Array:
        T, S = allowed_BTS.shape[1:]
        q = pad_time(q_BTNH, 0, T % 2)  # both sides of the mask must be even
        k, v = pad_time((k_BSKH, v_BSKH), 0, S % 2)
        mask_BTS = jnp.pad(allowed_BTS, ((0, 0), (0, T % 2), (0, S % 2)))
        return kernel(q, k, v, {'mask': mask_BTS[:, None]})[:, :T]

    def by_lengths(back: float, ahead: float) -> jax.Array:
        # A length of 0 would be a division by 0. Such rows take one key, and become 0 below.
        lengths = [
            jnp.maximum((tokens.segments_BT != 0).sum(-1), 1)
            for tokens in (inputs.query_tokens, inputs.key_tokens)
        ]
        return kernel(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            {'query_seq_lengths': lengths[0], 'key_value_seq_lengths': lengths[1]},
            is_causal=ahead == 0,
            local_window_size=None if back == math.inf else (int(back), 0),
        )

    reach = band(inputs.mask)
    if reach is None or not (reach[1] == 0 or reach == NO_BOUND):
        o_BTNH = by_matrix()
    else:
        unpacked = _is_unpacked(inputs.query_tokens) & _is_unpacked(inputs.key_tokens)
        o_BTNH = jax.lax.cond(unpacked, functools.partial(by_lengths, *reach), by_matrix)
    return _zero_where_empty(o_BTNH, allowed_BTS)


def _run_cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, by_row: dict, **static: Any
) -> jax.Array:
    """Return o_BTNH; `by_row` are the arguments that are arrays of rows, a mask or lengths."""

    def attend(q_BTNH, k_BSKH, v_BSKH, by_row):
        return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, **by_row, **static)

    # Left to itself the compiler gathers all rows on every device for the backward pass.
    axes = (QUERIES, KEYS, KEYS, ('batch',))
    return _shard_over_mesh(attend, axes, QUERIES)(q_BTNH, k_BSKH, v_BSKH, by_row)


def _is_unpacked(tokens: Tokens) -> jax.Array:
    """Return whether every row is segment 1 from position 0 and then padding.

    The index in the array is then the position.
    """
    positions_BT, segments_BT = tokens
    index_1T = jnp.arange(positions_BT.shape[1])[None]
    real_BT = index_1T < (segments_BT != 0).sum(-1, keepdims=True)
    return ((segments_BT == real_BT) & ((positions_BT == index_1T) | ~real_BT)).all()


def splash(kind: Any, queries: Any, keys: Any, inputs: Any, interpret: bool = False) -> jax.Array:
    """Return o_BTNH by the splash attention kernel of JAX's Pallas.

    Its mask is by index in the arrays: within a segment, indices are as far apart as positions.
    Packed rows cost nothing extra.

    Args:
        kind: a kind that `splash_incompatibility` allows.
        queries: leaves [B, T, …].
        keys: leaves [B, S, …].
        inputs: mask, tokens and parameters.
        interpret: runs the kernel on any machine, slowly.
    """
    library = _splash_library()
    tile = kind.tile(queries, keys, inputs, inputs.allowed_BTS())
    T, S = tile.allowed_BTS.shape[1:]
    q_BTNH, query_tokens = pad_time((tile.q_BTNH * tile.scale, inputs.query_tokens), 0, -T % LANES)
    k_BSKH, v_BSKH, key_tokens = pad_time(
        (tile.k_BSKH, kind.values(keys), inputs.key_tokens), 0, -S % LANES
    )
    N, K = tile.heads
    extra_KG11 = kind.normalizer.extra_KG11(inputs.params['normalizer'])
    sinks_N = None
    if extra_KG11 is not None:
        sinks_N = jnp.broadcast_to(extra_KG11, (K, N // K, 1, 1)).reshape(N)
    reach = band(inputs.mask)
    assert reach is not None, 'other masks are refused for this engine'
    mask = _splash_mask(reach, (q_BTNH.shape[1], k_BSKH.shape[1]))
    q, kv = (math.gcd(length, SPLASH_BLOCK) for length in mask.shape)
    blocks = library.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )

    def kernel(q_BNTH, k_BKSH, v_BKSH, query_segments_BT, key_segments_BS, sinks_N):
        heads = library.MultiHeadMask([mask] * q_BNTH.shape[1])  # on a mesh: those of one device
        run = library.make_splash_mha_single_device(
            heads,
            block_sizes=blocks,
            attn_logits_soft_cap=kind.softcap or None,
            interpret=interpret,
        )
        return jax.vmap(functools.partial(run, sinks=sinks_N))(
            q_BNTH, k_BKSH, v_BKSH, library.SegmentIds(query_segments_BT, key_segments_BS)
        )

    heads_first = (jnp.swapaxes(x_BTNH, 1, 2) for x_BTNH in (q_BTNH, k_BSKH, v_BSKH))
    queries, keys = ('batch', 'heads'), ('batch', 'kv_heads')
    axes = (queries, keys, keys, ('batch',), ('batch',), ('heads',))
    o_BNTH = _shard_over_mesh(kernel, axes, queries)(
        *heads_first, query_tokens.segments_BT, key_tokens.segments_BT, sinks_N
    )
    return _zero_where_empty(jnp.swapaxes(o_BNTH, 1, 2)[:, :T], tile.allowed_BTS)


def _splash_library() -> Any:
    """Import the kernel's package, which takes about a second, only where it is used."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def _splash_mask(reach: tuple[float, float], shape: tuple[int, int]) -> Any:
    if reach == NO_BOUND:
        return _splash_library().FullMask(shape)
    sides = tuple(None if side == math.inf else int(side) for side in reach)
    return _splash_library().LocalMask(shape, sides, offset=0)


def _shard_over_mesh(
    kernel: Callable[..., jax.Array], inputs: Sequence[Axes], output: Axes
) -> Callable[..., jax.Array]:
    """Return `kernel` for each device's own rows and heads: the compiler cannot cut a kernel.

    Args:
        kernel: of pytrees.
        inputs: the logical axes of the arrays of each.
        output: the logical axes of its result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return kernel
    return jax.shard_map(
        kernel,
        in_specs=tuple(map(logical_to_mesh_axes, inputs)),
        out_specs=logical_to_mesh_axes(output),
        check_vma=False,
    )


def _zero_where_empty(o_BTNH: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    return jnp.where(allowed_BTS.any(-1)[:, :, None, None], o_BTNH, 0)
