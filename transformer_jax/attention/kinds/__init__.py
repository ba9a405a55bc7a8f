"""The table of attention kinds: one row for each, and one file.

The features, decays and rows of linear attention have files of their own beside it,
`linear_features`, `linear_decays` and `linear_rows`, because no other kind uses them.
"""

from transformer_jax.attention.base import Attention
from transformer_jax.attention.kinds.additive import Additive
from transformer_jax.attention.kinds.differential import Differential
from transformer_jax.attention.kinds.latent import Latent
from transformer_jax.attention.kinds.linear import Linear
from transformer_jax.attention.kinds.linformer import Linformer
from transformer_jax.attention.kinds.reformer import Reformer
from transformer_jax.attention.kinds.sinkhorn import Sinkhorn
from transformer_jax.attention.kinds.softmax import Softmax
from transformer_jax.attention.kinds.synthesizer import Synthesizer

KINDS: dict[str, type[Attention]] = {
    'softmax': Softmax,
    'linear': Linear,
    'additive': Additive,
    'differential': Differential,
    'latent': Latent,
    'synthesizer': Synthesizer,
    'linformer': Linformer,
    'reformer': Reformer,
    'sinkhorn': Sinkhorn,
}
