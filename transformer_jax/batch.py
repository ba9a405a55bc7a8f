"""What a training step sees: one pytree of rows, made on the host and read on the devices."""

from typing import Any, NamedTuple

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class Tokens(NamedTuple):
    """Where tokens stand: positions count from 0 in each segment, segment 0 is padding."""

    positions_BT: Any
    segments_BT: Any


class Batch(NamedTuple):
    """Rows of tokens with their positions and segments; int32, `weights_BT` float32.

    Segment 0 is padding; the segments of a row count from 1 and positions restart at 0 in each, so
    that one sentence per row and several packed sentences per row are the same thing to the model.
    Source and target sentences end with EOS; `inputs_BT` is `targets_BT` shifted right within its
    segment, starting with BOS.
    """

    source_BS: Any
    source_positions_BS: Any
    source_segments_BS: Any
    inputs_BT: Any
    targets_BT: Any
    positions_BT: Any
    segments_BT: Any
    weights_BT: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, length) as the plan of the data has them: a class, of which there is one a row,
        has no length.
        """
        return (self.targets_BT if self.source_BS is None else self.source_BS).shape

    @property
    def source_tokens(self) -> Tokens:
        """Where the source's tokens stand."""
        return Tokens(self.source_positions_BS, self.source_segments_BS)

    @property
    def target_tokens(self) -> Tokens:
        """Where the target's tokens stand."""
        return Tokens(self.positions_BT, self.segments_BT)
