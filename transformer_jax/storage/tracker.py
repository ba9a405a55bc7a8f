"""What a run tells a tracker of experiments."""

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """A program that keeps the numbers of runs, beside the files of their workdirs."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the configuration, {'train.steps': 100}, once and first."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step, {'train/loss': 2.5}; may be called twice for a step."""
        ...

    def log_artifact(self, path: str) -> None:
        """Record a file, such as a picture of the learning curves."""
        ...

    def finish(self) -> None:
        """Write what is not yet written; nothing follows."""
        ...
