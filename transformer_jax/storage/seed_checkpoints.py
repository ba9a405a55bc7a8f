"""Checkpoints of a group of seeds, and the part of them that belongs to one seed.

The arrays of a group are stacked: axis 0 counts its members. meta['records'] has an object for each
member, of which 'saves' lists the steps that a run trained alone would have kept.
"""

from typing import Any

import jax
import numpy as np
from absl import logging

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.seed_group_file import NAME, group_at
from transformer_jax.storage.workdir import Workdir


def open_checkpoints(workdir: Workdir) -> Checkpoints:
    """Open the checkpoints of a run, read-only; of a member of a group its own slices.

    Raises:
        ConfigError: it is the workdir of a group, which holds several runs (they are listed).
        WorkdirError: the file of groups is damaged.
    """
    if workdir.seed_group is not None:
        return SeedCheckpoints(workdir.seed_group, workdir.path.name)
    group = group_at(workdir.path)
    if group is not None:
        raise ConfigError(
            f'--workdir={workdir.path} holds a group of seeds: name one of them, '
            f'{", ".join(map(str, group.member_paths))}'
        )
    return Checkpoints(workdir.checkpoints_path, keep=1, read_only=True)


class GroupCheckpoints(Checkpoints):
    """The checkpoints of a group; a step is kept as long as one of its members keeps it."""

    def protected_steps(self) -> set[int]:
        return {step for record in _newest_records(self) for step in record['saves']}


class SeedCheckpoints(Checkpoints):
    """One seed's slices of the checkpoints of its group, read-only.

    It has the steps that a run trained alone would have kept.
    """

    def __init__(self, group: SeedGroup, member: str):
        """Open the slices of a member in the checkpoints of its group."""
        directory = group.path / 'checkpoints'
        super().__init__(directory, keep=1, read_only=True)
        self._seeds, self._index = group, group.members.index(member)
        self._group = Checkpoints(directory, keep=1, read_only=True)

    def valid_steps(self) -> list[int]:
        record = self._newest_record()
        return [step for step in self._group.valid_steps() if record and step in record['saves']]

    def best_step(self) -> int | None:
        record = self._newest_record()
        return record['best']['step'] if record and record['best'] else None

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict]:
        chosen = run_on_primary(lambda: self._verified_step(step))
        _, states, meta = super().restore(self._stacked(abstract_state, chosen), chosen)
        state = jax.tree.map(
            lambda a, like: jax.device_put(a[self._index], like.sharding), states, abstract_state
        )
        return chosen, state, meta

    def _newest_record(self) -> dict[str, Any] | None:
        records = _newest_records(self._group)
        return check_records(self._seeds, records)[self._index] if records else None

    def _host_params(self, abstract_params: Any, step: int, part: str) -> Any:
        stacked = super()._host_params(self._stacked(abstract_params, step), step, part)
        return jax.tree.map(lambda a: np.asarray(a)[self._index], stacked)

    def _stacked(self, abstract: Any, step: int) -> Any:
        """Add the axis of seeds to abstract arrays."""
        seeds = len(self.meta(step)['records'])
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((seeds, *a.shape), a.dtype), abstract)


def check_records(group: SeedGroup, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of a checkpoint if there is one for each member of the group.

    Raises:
        WorkdirError: the file of groups lists other members than the checkpoint has.
    """
    if len(records) != len(group.members):
        raise WorkdirError(
            f'{group.parent / NAME} lists {len(group.members)} members of {group.path}, but its '
            f'checkpoints have {len(records)}: restore it'
        )
    return records


def _newest_records(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """Read the members' records in the newest undamaged checkpoint of a group; [] without one."""
    for step in reversed(checkpoints.valid_steps()):
        try:
            return checkpoints.meta(step)['records']
        except WorkdirError as error:
            logging.warning('%s', error)
    return []
