"""Checkpoints of a group of seeds, and the part of them that belongs to one seed.

The arrays of a group are stacked: axis 0 counts its members. meta['records'] has an object for each
member, of which 'saves' lists the steps that a run trained alone would have kept. meta['members']
has their folders, and the values of the keys in which their configurations may differ.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.seed_group import MAY_DIFFER, SeedGroup
from transformer_jax.storage.seed_group_file import NAME, group_at
from transformer_jax.storage.workdir import Workdir


def open_checkpoints(workdir: Workdir) -> Checkpoints:
    """Open the checkpoints of a run, read-only; of a member of a group its own slices.

    Raises:
        ConfigError: it is the workdir of a group, which holds several runs (they are listed).
        WorkdirError: the file of groups is damaged.
    """
    if workdir.seed_group is not None:
        return SeedCheckpoints(workdir, workdir.seed_group)
    group = group_at(workdir.path)
    if group is not None:
        raise ConfigError(
            f'--workdir={workdir.path} holds a group of seeds: name one of them, '
            f'{", ".join(map(str, group.member_paths))}'
        )
    run = workdir.identity()
    return Checkpoints(workdir.checkpoints_path, keep=1, read_only=True, run=run)


def open_shared_checkpoints(workdir: Workdir) -> Checkpoints:
    """Open the checkpoints of a run, read-only; of a member of a group those of the whole group."""
    run = Workdir(workdir.seed_group.path).identity() if workdir.seed_group else workdir.identity()
    return Checkpoints(workdir.checkpoints_path, keep=1, read_only=True, run=run)


class GroupCheckpoints(Checkpoints):
    """The checkpoints of a group; a step is kept as long as one of its members keeps it."""

    def protected_steps(self) -> set[int]:
        return {step for record in _newest_records(self) for step in record['saves']}


class SeedCheckpoints(Checkpoints):
    """One seed's slices of the checkpoints of its group, read-only.

    It has the steps that a run trained alone would have kept.
    """

    def __init__(self, workdir: Workdir, group: SeedGroup):
        """Open the slices of the member with a workdir in the checkpoints of its group."""
        run = Workdir(group.path).identity()
        super().__init__(workdir.checkpoints_path, keep=1, read_only=True, run=run)
        self._seeds, self._index = group, group.members.index(workdir.path.name)
        self._member = workdir.identity()
        self._group = open_shared_checkpoints(workdir)

    def valid_steps(self) -> list[int]:
        record = self._newest_record()
        return [step for step in self._group.valid_steps() if record and step in record['saves']]

    def best_step(self) -> int | None:
        record = self._newest_record()
        return record['best']['step'] if record and record['best'] else None

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict]:
        chosen = run_on_primary(lambda: self.verified_step(step))
        _, states, meta = super().restore(self._stacked(abstract_state, chosen), chosen)
        state = jax.tree.map(
            lambda a, like: jax.device_put(a[self._index], like.sharding), states, abstract_state
        )
        return chosen, state, meta

    def _newest_record(self) -> dict[str, Any] | None:
        records = _newest_records(self._group)
        return check_records(self._seeds, records)[self._index] if records else None

    def record(self, step: int) -> dict:
        """See Checkpoints; the slice must also be that of this member."""
        record = super().record(step)
        stored, ignored = record['meta'].get('config'), ('train.num_seeds',)
        members = record['meta'].get('members')
        if members is None:  # An earlier version wrote it.
            ignored += MAY_DIFFER
        else:
            self._require_member(members[self._index]['folder'], step)
            stored = _with_values(stored, members[self._index]['values'])
        if self._member is not None and stored is not None:
            self._member.require_config(stored, self.path(step), ignored)
        return record

    def _require_member(self, folder: str, step: int) -> None:
        if folder != self._seeds.members[self._index]:
            raise WorkdirError(
                f'{self._seeds.parent / NAME} lists member {self._index} of {self._seeds.path} as '
                f'{self._seeds.members[self._index]}, but checkpoint {self.path(step)} has it as '
                f'{folder}: restore {NAME}'
            )

    def abstract_part(self, step: int, part: str) -> dict[str, Any]:
        stacked = super().abstract_part(step, part)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)

    def _read_part(self, abstract_params: Any, step: int, part: str) -> Any:
        stacked = super()._read_part(self._stacked(abstract_params, step), step, part)

        def take(stacked: Any, like: jax.ShapeDtypeStruct) -> Any:
            if like.sharding is None:
                return stacked[self._index]
            return _slice(stacked, self._index, like.sharding)

        return jax.tree.map(take, stacked, abstract_params)

    def _stacked(self, abstract: Any, step: int) -> Any:
        """Add the axis of seeds to abstract arrays; each device holds its part of all of them."""
        seeds = len(self.meta(step)['records'])

        def stack(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = a.sharding
            if isinstance(sharding, NamedSharding):
                sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
            return jax.ShapeDtypeStruct((seeds, *a.shape), a.dtype, sharding=sharding)

        return jax.tree.map(stack, abstract)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _slice(stacked: jax.Array, index: int, sharding: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(stacked[index], sharding)


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


def _with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested configuration with some of its keys, 'section.key', replaced."""
    changed = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in config.items()
    }
    for key, value in values.items():
        section, _, last = key.partition('.')
        changed[section][last] = value
    return changed


def _newest_records(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """Read the members' records in the newest undamaged checkpoint of a group; [] without one."""
    for step in reversed(checkpoints.valid_steps()):
        try:
            return checkpoints.meta(step)['records']
        except manifest.Damaged as error:
            logging.warning('%s', error)
    return []
