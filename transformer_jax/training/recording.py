"""What a start of training records beside the files of its workdir; it changes no result."""

import dataclasses

from transformer_jax.efficiency.profile import Window


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is recorded of one start.

    Attributes:
        profile: the steps that are traced for XProf; None: none.
    """

    profile: Window | None = None

    def require_within(self, steps: int) -> None:
        """Raise ConfigError where a run of so many steps does not have the steps of `profile`."""
        if self.profile is not None:
            self.profile.require_within(steps)


NOTHING = Recording()
