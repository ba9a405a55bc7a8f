"""Kernels that an accelerator has for softmax attention: cuDNN's on NVIDIA GPUs, splash attention
on TPUs.

Both keep to what everything else promises: a query that may see nothing gives exactly 0 (the
kernels give the mean of the values), positions restart in every segment, and whatever a kernel has
no argument for is refused by name.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.attention.engines.tiles import SiteSpec, pad_time
from transformer_jax.attention.masks import And, Causal, Full, Mask, Segments, Window
from transformer_jax.attention.normalizers import Exponential, Softmax
from transformer_jax.batch import Tokens

HALF = ('float16', 'bfloat16')
CUDNN_HEAD_DIM = 128  # of GPUs before Hopper, which take 256
LANES = 128  # of a TPU's registers: splash takes lengths that are multiples of it
SPLASH_BLOCK = 512
NO_BOUND = (math.inf, math.inf)


def band(mask: Mask) -> tuple[float, float] | None:
    """(back, ahead) of a mask that allows all keys of the segment within that distance; None of
    any other.
    """
    if isinstance(mask, And):
        sides = band(mask.left), band(mask.right)
        return None if None in sides else tuple(map(min, *sides))
    return mask.reach() if isinstance(mask, Segments | Full | Causal | Window) else None


def _bias_or_score_incompatibility(kind: Any, position: Any) -> str:
    if position.acts_on_scores():
        return 'the kernel takes no scores from a position encoding: none, sinusoidal, learned and rope work'
    return kind.kernel_incompatibility()


def cudnn_incompatibility(kind: Any, position: Any) -> str:
    """What cuDNN's kernel has no argument for."""
    if type(kind.normalizer) is not Softmax:
        return 'the kernel has no normalizer but softmax'
    return _bias_or_score_incompatibility(kind, position) or (
        'the kernel has no softcap' if kind.softcap else ''
    )


def splash_incompatibility(kind: Any, position: Any) -> str:
    """What the splash kernel has no argument for."""
    if not isinstance(kind.normalizer, Exponential):
        return 'the kernel has no normalizers but softmax, off_by_one and sink'
    if band(kind.mask) is None:
        return 'the kernel takes its mask as a band: full and window work'
    return _bias_or_score_incompatibility(kind, position)


def cudnn_site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Sizes, types and dropout that cuDNN's kernel does not take."""
    heads = site.heads
    if site.dtype not in HALF:
        return f'model.dtype={site.dtype!r}, the kernel takes {" and ".join(HALF)}'
    if heads.head_dim != heads.value_dim or heads.head_dim % 8 or heads.head_dim > CUDNN_HEAD_DIM:
        return (
            f'heads of {heads.head_dim} and values of {heads.value_dim}: the kernel takes equal sizes, multiples of 8, of at '
            f'most {CUDNN_HEAD_DIM}'
        )
    return _dropout_incompatibility(site)


def splash_site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Places where the splash kernel's mask, which counts places of arrays, is not the kind's."""
    if site.name == 'cross' and not isinstance(kind.mask, Full):
        return "the kernel's windows count places in arrays, which between two sequences are no positions"
    return _dropout_incompatibility(site)


def _dropout_incompatibility(site: SiteSpec) -> str:
    return (
        'the kernel drops no weights: set model.attention_dropout=False'
        if site.attention_dropout
        else ''
    )


def skips_tiles(kind: Any, site: SiteSpec) -> bool:
    """Whether cuDNN's kernel can be told the mask as lengths, causality and a window, instead of as
    a matrix.
    """
    reach = band(kind.mask)
    return reach == NO_BOUND or (reach is not None and site.name == 'decoder')


def cudnn(
    kind: Any, queries: Any, keys: Any, inputs: Any, implementation: str = 'cudnn'
) -> jax.Array:
    """o_BTNH by jax.nn.dot_product_attention; `implementation` 'xla' runs what it is asked on
    any machine.

    Where every row holds one segment, then padding, the kernel is given lengths, causality and the
    window. Where rows are packed, or the mask is not such a band, it is given the whole matrix,
    which takes it about 2.5 times as long. What a batch holds is known when it is there, so both
    ways are compiled.
    """
    allowed_BTS = inputs.allowed_BTS()
    tile = kind.tile(queries, keys, inputs, allowed_BTS)
    q_BTNH, k_BSKH, v_BSKH = tile.q_BTNH, tile.k_BSKH, kind.values(keys)
    kernel = functools.partial(
        jax.nn.dot_product_attention, scale=tile.scale, implementation=implementation
    )

    def by_matrix() -> jax.Array:
        T, S = allowed_BTS.shape[1:]
        q, k, v = (
            pad_time(q_BTNH, 0, T % 2),
            *pad_time((k_BSKH, v_BSKH), 0, S % 2),
        )  # A mask's sides must be even.
        mask_BTS = jnp.pad(allowed_BTS, ((0, 0), (0, T % 2), (0, S % 2)))
        return kernel(q, k, v, mask=mask_BTS[:, None])[:, :T]

    def by_lengths() -> jax.Array:
        back, ahead = reach
        # A sum over no keys would divide by nothing: such rows take a key, and become 0 below.
        lengths = [
            jnp.maximum((tokens.segments_BT != 0).sum(-1), 1)
            for tokens in (inputs.query_tokens, inputs.key_tokens)
        ]
        return kernel(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            is_causal=ahead == 0,
            query_seq_lengths=lengths[0],
            key_value_seq_lengths=lengths[1],
            local_window_size=None if back == math.inf else (int(back), 0),
        )

    reach = band(inputs.mask)
    if reach is None or not (reach[1] == 0 or reach == NO_BOUND):
        o_BTNH = by_matrix()
    else:
        plain = _one_segment(inputs.query_tokens) & _one_segment(inputs.key_tokens)
        o_BTNH = jax.lax.cond(plain, by_lengths, by_matrix)
    return _zero_where_empty(o_BTNH, allowed_BTS)


def _one_segment(tokens: Tokens) -> jax.Array:
    """Whether all rows are segment 1 from position 0, then padding: places in the arrays
    are positions.
    """
    positions_BT, segments_BT = tokens
    places_1T = jnp.arange(positions_BT.shape[1])[None]
    real_BT = places_1T < (segments_BT != 0).sum(-1, keepdims=True)
    return ((segments_BT == real_BT) & ((positions_BT == places_1T) | ~real_BT)).all()


def splash(kind: Any, queries: Any, keys: Any, inputs: Any, interpret: bool = False) -> jax.Array:
    """o_BTNH by the splash attention kernel of JAX's Pallas; `interpret` runs it, slowly, on
    any machine.

    Its mask counts places in arrays, which within a segment lie as far apart as the positions do.
    Packed rows cost nothing extra.
    """
    library = _splash()
    tile = kind.tile(queries, keys, inputs, inputs.allowed_BTS())
    T, S = tile.allowed_BTS.shape[1:]
    q_BTNH, query = pad_time((tile.q_BTNH * tile.scale, inputs.query_tokens), 0, -T % LANES)
    k_BSKH, v_BSKH, key = pad_time(
        (tile.k_BSKH, kind.values(keys), inputs.key_tokens), 0, -S % LANES
    )
    N, K = tile.heads
    extra_KG11 = kind.normalizer.extra_KG11(inputs.params['normalizer'])
    sinks_N = (
        None if extra_KG11 is None else jnp.broadcast_to(extra_KG11, (K, N // K, 1, 1)).reshape(N)
    )
    mask = _splash_mask(band(inputs.mask), (q_BTNH.shape[1], k_BSKH.shape[1]))
    q, kv = (math.gcd(length, SPLASH_BLOCK) for length in mask.shape)
    blocks = library.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )

    def kernel(q_BNTH, k_BKSH, v_BKSH, query_BT, key_BS, sinks_N):
        heads = library.MultiHeadMask([mask] * q_BNTH.shape[1])  # On a mesh, those of one device.
        run = library.make_splash_mha_single_device(
            heads,
            block_sizes=blocks,
            attn_logits_soft_cap=kind.softcap or None,
            interpret=interpret,
        )
        return jax.vmap(functools.partial(run, sinks=sinks_N))(
            q_BNTH, k_BKSH, v_BKSH, library.SegmentIds(query_BT, key_BS)
        )

    by_heads = (jnp.swapaxes(x_BTNH, 1, 2) for x_BTNH in (q_BTNH, k_BSKH, v_BSKH))
    o_BNTH = _over_mesh(kernel)(*by_heads, query.segments_BT, key.segments_BT, sinks_N)
    return _zero_where_empty(jnp.swapaxes(o_BNTH, 1, 2)[:, :T], tile.allowed_BTS)


def _splash() -> Any:
    """The kernel's package, whose import takes a second that only TPUs need to spend."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def _splash_mask(reach: tuple[float, float], shape: tuple[int, int]) -> Any:
    if reach == NO_BOUND:
        return _splash().FullMask(shape)
    return _splash().LocalMask(
        shape, tuple(None if side == math.inf else int(side) for side in reach), offset=0
    )


def _over_mesh(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`kernel` on each device's own rows and heads, since the compiler cannot cut a
    kernel itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return kernel
    queries, keys = (nn.logical_to_mesh_axes(('batch', heads)) for heads in ('heads', 'kv_heads'))
    rows, sinks = nn.logical_to_mesh_axes(('batch',)), nn.logical_to_mesh_axes(('heads',))
    return jax.shard_map(
        kernel,
        in_specs=(queries, keys, keys, rows, rows, sinks),
        out_specs=queries,
        check_vma=False,
    )


def _zero_where_empty(o_BTNH: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    return jnp.where(allowed_BTS.any(-1)[:, :, None, None], o_BTNH, 0)
