"""Position encodings: the table POSITIONS and their common interface `base.Position`."""

from transformer_jax.positions.absolute import Learned, Sinusoidal, sinusoids
from transformer_jax.positions.base import Position, Tile
from transformer_jax.positions.biases import T5, Alibi, Fire, Kerple
from transformer_jax.positions.contextual import Cope
from transformer_jax.positions.relative import Shaw, TransformerXL
from transformer_jax.positions.rotary import Rope

__all__ = ['POSITIONS', 'Position', 'Tile', 'sinusoids']

POSITIONS: dict[str, type[Position]] = {
    'none': Position,
    'sinusoidal': Sinusoidal,
    'learned': Learned,
    'rope': Rope,
    'alibi': Alibi,
    't5': T5,
    'shaw': Shaw,
    'transformer_xl': TransformerXL,
    'kerple': Kerple,
    'fire': Fire,
    'cope': Cope,
}
