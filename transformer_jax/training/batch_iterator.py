"""What the training loop reads its batches from."""

from typing import Any, Protocol

from transformer_jax.batch import Batch


class BatchIterator(Protocol):
    """Training batches without end, whose position can be saved and restored."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def get_state(self) -> Any:
        """Return the position after the last batch, a JSON value."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a position."""
