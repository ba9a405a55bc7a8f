"""The batch: a pytree of rows of tokens, made on the host and read by the compiled step."""

from typing import Any, NamedTuple

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class Tokens(NamedTuple):
    """The positions and segments of tokens, int32."""

    positions_BT: Any  # from 0 in each segment
    segments_BT: Any  # from 1; 0 is padding


class Batch(NamedTuple):
    """Rows of tokens with their positions and segments; int32, `weights_BT` float32.

    The segments of a row count from 1, segment 0 is padding, and positions restart at 0 in each
    segment. To the model, a row with one sentence and a row with several packed sentences are
    therefore the same. Source and target sentences end with EOS; `inputs_BT` is `targets_BT`
    shifted right within each segment, with BOS first. `weights_BT` is the weight of each target in
    the loss. The source is None for a model that does not read one.
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
        """(rows, length) of the source, or of the target where there is no source."""
        return (self.targets_BT if self.source_BS is None else self.source_BS).shape

    @property
    def source_tokens(self) -> Tokens:
        """The positions and segments of the source."""
        return Tokens(self.source_positions_BS, self.source_segments_BS)

    @property
    def target_tokens(self) -> Tokens:
        """The positions and segments of the target."""
        return Tokens(self.positions_BT, self.segments_BT)
