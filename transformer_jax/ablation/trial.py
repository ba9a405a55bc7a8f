"""A run of an ablation: a setting with one seed."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.settings import Setting
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.seed_groups import group_name


@dataclasses.dataclass(frozen=True)
class Trial:
    """A setting with one seed: one run of training, in a workdir of its own.

    `measured` says whether its size and the time of its steps are measured when it is scored.
    """

    measured: ClassVar[bool] = True

    setting: Setting
    seed: int
    workdir: epath.Path

    @property
    def name(self) -> str:
        """The name in the log: the folder under the root."""
        return f'{self.setting.folder}/{self.workdir.name}'

    def sibling(self, folder: str) -> 'Trial | None':
        """Return the trial of the same setting in a folder beside it; None if that is no seed."""
        if not folder.isdecimal() or folder != str(int(folder)):
            return None
        return Trial(self.setting, int(folder), self.workdir.parent / folder)

    def group_name(self, members: Sequence['Trial']) -> str:
        """Name the folder of the group of some trials of the same setting."""
        return group_name([member.seed for member in members])

    @property
    def config(self) -> ExperimentConfig:
        """The configuration that it trains with."""
        return config_lib.replace(
            self.setting.config,
            train=dataclasses.replace(self.setting.config.train, seed=self.seed),
        )
