"""Checkpoints that are verified before they are used: Orbax in one small class.

Orbax by itself restores flipped bits, casts dtypes and takes an empty directory for the newest
step, all without an error. So a step counts only if it has MANIFEST.json, the last file written,
with the size and SHA-256 of the step's other files:

    checkpoints/<step>/state/          the train state as Orbax writes it (OCDBT)
    checkpoints/<step>/meta.json       run, step, the caller's meta; name, dtype and shape of every
                                       array
    checkpoints/<step>/MANIFEST.json   written last; a step without it is torn and does not count

`AsyncCheckpointer` rather than `CheckpointManager`: the manifests decide which steps exist, count
and are kept, and the manager would keep a second list that can disagree with them.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from transformer_jax.errors import WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.arrays import abstract_tree, check_same_arrays, describe_arrays
from transformer_jax.storage.checkpoint_folders import META, CheckpointFolders
from transformer_jax.storage.files import exists, wrap_os_errors, write_text
from transformer_jax.storage.first_checkpoint import record_first_checkpoint
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.orbax_errors import save_failure, silence_orbax
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.run_identity import RunIdentity

Place = tuple[tuple[int, int], ...]  # of a part of an array: [start, stop) of each dimension
Pieces = dict[Place, np.ndarray]


class Checkpoints(CheckpointFolders):
    """The checkpoints of one run.

    In a run of several processes every process must call `save`, `wait`, `restore` and `params`,
    on one shared file system; process 0 writes manifests, verifies and deletes.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        read_only: bool = False,
        run: RunIdentity | None = None,
    ):
        """Open the checkpoints of a directory; arguments as `CheckpointFolders`."""
        super().__init__(directory, keep=keep, read_only=read_only, run=run)
        silence_orbax()
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._finisher: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Start to write a checkpoint; the arrays may be changed or donated when this returns.

        Call `wait` before the program ends: a save that the exit of the interpreter interrupts is
        torn and does not count.

        Args:
            step: the number of updates that made `state`.
            state: a pytree of arrays.
            meta: JSON values. `meta['best']` is None or a mapping whose 'step' is the best step,
                which is never deleted.

        Raises:
            WorkdirError: the step exists already, the directory is not writable, or the previous
                save failed.
        """
        self.wait()
        if self.read_only or step in self.valid_steps():
            reason = 'opened read-only' if self.read_only else 'the step exists already'
            raise WorkdirError(f'cannot save {self.path(step)}: {reason}')
        origin = {'run': self.run.run_id} if self.run else {}
        record = to_json(
            {'step': step, **origin, 'meta': meta, 'arrays': describe_arrays(state)}, indent=1
        )
        with wrap_os_errors(self.directory):
            run_on_primary(lambda: self.make_room(step))
            self._orbax.save(self.path(step) / 'state', args=ocp.args.PyTreeSave(state))
        self._finisher = threading.Thread(
            target=self._finish, args=(step, record), name=f'checkpoint {step}'
        )
        self._finisher.start()

    def wait(self) -> None:
        """Wait until the last save, its manifest included, is on disk.

        Raises:
            WorkdirError: the save failed.
        """
        if self._finisher is None:
            return
        self._finisher.join()
        name, failure = self._finisher.name, self._failure
        self._finisher = self._failure = None
        if failure is not None:
            if isinstance(failure, WorkdirError):
                raise failure
            raise WorkdirError(
                f'{name} was not saved in {self.directory}: {save_failure(failure)}; make room '
                'or choose another directory'
            ) from failure
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict]:
        """Verify and restore a step, by default the newest intact one.

        Args:
            abstract_state: a pytree of `jax.ShapeDtypeStruct`. The arrays get its shardings,
                whatever mesh they were saved on; a leaf without a sharding goes to the first
                device.
            step: the step to restore; if it is damaged, this raises. If None, damaged newer steps
                are logged with the damaged file and no longer count, so that the run can save the
                same step again.

        Returns:
            (step, state, meta)

        Raises:
            WorkdirError: there is no such step; it is damaged, the message names the file; or it
                is of another run, step or configuration.
            ConfigError: a name, shape or dtype in `abstract_state` differs from what is stored;
                the message names the array.
        """
        self.wait()
        step = run_on_primary(lambda: self.verified_step(step))
        record = self.record(step)
        check_same_arrays(step, record['arrays'], describe_arrays(abstract_state))
        targets = jax.tree.map(_with_sharding, abstract_state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
        args = ocp.args.PyTreeRestore(targets, restore_args=restore_args)
        return step, self._read(step, args), record['meta']

    def params(self, abstract_params: Any, steps: Sequence[int], name: str = 'params') -> Any:
        """Return the mean of the parameters over `steps` (Vaswani et al. 2017, section 6.1).

        Verifies each step. A device receives its part of each array alone, and a process reads
        the parts of its devices. The sum is in float64; a single step gives its parameters
        unchanged.

        Args:
            abstract_params: a pytree of `jax.ShapeDtypeStruct`; the result gets its shardings. A
                leaf without a sharding becomes a NumPy array.
            steps: the checkpoints to average, see `selection.select_steps`.
            name: the part of the train state, 'params' or, if `train.ema` is on, 'ema'.

        Raises:
            WorkdirError, ConfigError: as `restore`.
        """
        self.wait()
        sums = None
        for step in steps:
            run_on_primary(lambda step=step: self.verified_step(step))
            params = self._read_part(abstract_params, step, name)
            if len(steps) == 1:
                return params
            pieces = jax.tree.map(_pieces, params)
            sums = pieces if sums is None else jax.tree.map(np.add, sums, pieces)

        def place_mean(abstract: jax.ShapeDtypeStruct, sums: Pieces) -> Any:
            shape = abstract.shape
            means = {place: (a / len(steps)).astype(abstract.dtype) for place, a in sums.items()}
            if abstract.sharding is None:
                return means[_place((slice(None),) * len(shape), shape)]
            return jax.make_array_from_callback(
                shape, abstract.sharding, lambda index: means[_place(index, shape)]
            )

        return jax.tree.map(place_mean, abstract_params, sums)

    def abstract_part(self, step: int, part: str) -> dict[str, Any]:
        """Return the shapes and dtypes of one part of a step, 'params' or 'ema', for `params`."""
        return abstract_tree(self.record(step)['arrays'], part)

    def _read_part(self, abstract_params: Any, step: int, part: str) -> Any:
        """Read one part of the train state of a verified step, laid out as `params` says."""
        arrays = self.record(step)['arrays']
        stored = {name: arrays[name] for name in arrays if name.startswith(f'{part}/')}
        tree = {part: abstract_params}
        check_same_arrays(step, stored, describe_arrays(tree))
        placed = jax.tree.map(_restore_args, tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=placed, partial_restore=True)
        return self._read(step, args)[part]

    def _read(self, step: int, args: ocp.args.PyTreeRestore) -> Any:
        path = self.path(step)
        try:
            return self._orbax.restore(path / 'state', args=args)
        except Exception as error:
            if exists(path / manifest.NAME):
                raise
            raise WorkdirError(f'checkpoint {path} {manifest.JUST_DELETED}') from error

    def _finish(self, step: int, record: str) -> None:
        """Wait for Orbax, write the manifest and delete old steps; runs in a thread of its own."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                write_text(self.path(step) / META, record)
                if self.run is not None and not self.valid_steps():
                    record_first_checkpoint(self.run.config_path, step)
                manifest.write(self.path(step))
        except Exception as failure:  # `wait` raises it: an exception in a thread would be lost.
            self._failure = failure
        else:
            if jax.process_index() == 0:
                self.remove_steps_not_kept()


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _place(index: Any, shape: tuple[int, ...]) -> Place:
    """Write the index of a part of an array with all bounds."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _pieces(array: jax.Array | np.ndarray) -> Pieces:
    """Return the parts of an array that this process has, in float64, each once."""
    if isinstance(array, np.ndarray):
        index = (slice(None),) * array.ndim
        return {_place(index, array.shape): array.astype(np.float64)}
    shards = {_place(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    return {place: np.asarray(data).astype(np.float64) for place, data in shards.items()}


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
