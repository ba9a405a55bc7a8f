"""What a start of training records beside the files of its workdir; it changes no result."""

import dataclasses

from transformer_jax.efficiency.profile import Window
from transformer_jax.trackers.kinds import require_tracker


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is recorded of one start.

    Attributes:
        profile: the steps that are traced for XProf; None: none.
        trackers: the programs that get the numbers of the run, see `trackers.kinds`.
    """

    profile: Window | None = None
    trackers: tuple[str, ...] = ()

    def require_possible(self, steps: int) -> None:
        """Check that a run of so many steps on this machine can record all of this.

        Raises:
            ConfigError: it does not have the steps of `profile`, or a tracker is not installed.
        """
        if self.profile is not None:
            self.profile.require_within(steps)
        for name in self.trackers:
            require_tracker(name)


NOTHING = Recording()
