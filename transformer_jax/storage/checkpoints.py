"""Checkpoints that are verified before they are used: Orbax in one small class.

Orbax by itself restores flipped bits, casts dtypes and takes an empty directory for the newest
step, all without an error. So a step counts only if it has MANIFEST.json, the last file written,
with the size and SHA-256 of the step's other files:

    checkpoints/<step>/state/          the train state as Orbax writes it (OCDBT)
    checkpoints/<step>/meta.json       step, the caller's meta; name, dtype and shape of every array
    checkpoints/<step>/MANIFEST.json   written last; a step without it is torn and does not count

`AsyncCheckpointer` rather than `CheckpointManager`: the manifests decide which steps exist, count
and are kept, and the manager would keep a second list that can disagree with them.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.arrays import check_same_arrays, describe_arrays
from transformer_jax.storage.files import absolute_path, wrap_os_errors
from transformer_jax.storage.processes import run_on_primary

META = 'meta.json'
# The manifest of a damaged step is renamed to this, so that the step no longer counts and can be
# saved again.
DAMAGED = 'DAMAGED.json'


class Checkpoints:
    """The checkpoints of one run.

    In a run of several processes every process must call `save`, `wait`, `restore` and `params`,
    on one shared file system; process 0 writes manifests, verifies and deletes.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, read_only: bool = False):
        """Open the checkpoints of a directory.

        Args:
            directory: the run's checkpoints/; need not exist yet.
            keep: how many of the newest steps are kept, besides the best one; at least 1.
            read_only: never change a file, damaged or not.
        """
        if keep < 1:
            raise ConfigError(f'checkpoint.keep={keep}: at least 1 checkpoint must be kept')
        self.directory = absolute_path(directory)
        self.keep = keep
        self._read_only = read_only
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
        if self._read_only or step in self.valid_steps():
            reason = 'opened read-only' if self._read_only else 'the step exists already'
            raise WorkdirError(f'cannot save {self.path(step)}: {reason}')
        record = json.dumps(
            {'step': step, 'meta': meta, 'arrays': describe_arrays(state)}, indent=1
        )
        with wrap_os_errors(self.directory):
            run_on_primary(lambda: self._make_room(step))
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
            # TensorStore's message first says at length where it failed, then why.
            reason = str(failure).splitlines()[0][-160:]
            raise WorkdirError(
                f'{name} was not saved in {self.directory}: {reason}; make room or choose another '
                '--workdir'
            ) from failure
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    def path(self, step: int) -> epath.Path:
        """Return the directory of a step."""
        return self.directory / str(step)

    def valid_steps(self) -> list[int]:
        """List the steps that were written completely, ascending.

        Cheap: reads no file; the contents are verified when they are restored.
        """
        return [step for step in self._all_steps() if (self.path(step) / manifest.NAME).exists()]

    def intact_steps(self) -> Iterator[int]:
        """Yield the valid steps that match their manifest, newest first.

        Logs a warning for each damaged step, which names the damaged file.
        """
        for step in reversed(self.valid_steps()):
            damage = manifest.find_damage(self.path(step))
            if damage is None:
                yield step
            else:
                logging.warning('checkpoint %s is damaged: %s', self.path(step), damage)

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
            WorkdirError: there is no such step, or it is damaged; the message names the file.
            ConfigError: a name, shape or dtype in `abstract_state` differs from what is stored;
                the message names the array.
        """
        self.wait()
        step = run_on_primary(lambda: self._verified_step(step))
        record = self._record(step)
        check_same_arrays(step, record['arrays'], describe_arrays(abstract_state))
        targets = jax.tree.map(_with_sharding, abstract_state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
        args = ocp.args.PyTreeRestore(targets, restore_args=restore_args)
        return step, self._orbax.restore(self.path(step) / 'state', args=args), record['meta']

    def meta(self, step: int) -> dict:
        """Return the `meta` that was saved with a valid step.

        Raises:
            WorkdirError: meta.json is damaged.
        """
        return self._record(step)['meta']

    def best_step(self) -> int | None:
        """Return the step that the newest undamaged meta.json records as the best so far."""
        for step in reversed(self.valid_steps()):
            try:
                best = self.meta(step)['best']
                return best['step'] if best else None
            except WorkdirError as error:
                logging.warning('%s', error)
        return None

    def protected_steps(self) -> set[int | None]:
        """Return the steps that are kept although they are not among the newest: the best one."""
        return {self.best_step()}

    def params(self, abstract_params: Any, steps: Sequence[int], name: str = 'params') -> Any:
        """Return the mean of the parameters over `steps` (Vaswani et al. 2017, section 6.1).

        Verifies each step. The sum is in float64; a single step gives its parameters unchanged.

        Args:
            abstract_params: a pytree of `jax.ShapeDtypeStruct`; the result gets its shardings.
            steps: the checkpoints to average, see `selection.select_steps`.
            name: the part of the train state, 'params' or, if `train.ema` is on, 'ema'.

        Raises:
            WorkdirError, ConfigError: as `restore`.
        """
        self.wait()
        total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), abstract_params)
        for step in steps:
            run_on_primary(lambda step=step: self._verified_step(step))
            total = jax.tree.map(np.add, total, self._host_params(abstract_params, step, name))

        def place_mean(total: np.ndarray, abstract: jax.ShapeDtypeStruct) -> jax.Array:
            mean = np.asarray(total / len(steps)).astype(abstract.dtype)
            sharding = _with_sharding(abstract).sharding
            return jax.make_array_from_callback(mean.shape, sharding, lambda i: mean[i])

        return jax.tree.map(place_mean, total, abstract_params)

    def _host_params(self, abstract_params: Any, step: int, part: str) -> Any:
        arrays = self._record(step)['arrays']
        stored = {name: arrays[name] for name in arrays if name.startswith(f'{part}/')}
        tree = {part: abstract_params}
        check_same_arrays(step, stored, describe_arrays(tree))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
        return self._orbax.restore(self.path(step) / 'state', args=args)[part]

    def _all_steps(self) -> list[int]:
        names = [path.name for path in self.directory.iterdir()] if self.directory.exists() else []
        return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))

    def _record(self, step: int) -> dict:
        return json.loads(manifest.read_text(self.path(step), META))

    def _verified_step(self, step: int | None) -> int:
        """Return the step to restore, verified: the given one or, if None, the newest intact one.

        If None, steps that are newer and damaged get their manifest renamed, unless read-only.
        """
        steps = self.valid_steps()
        if not steps or step not in (None, *steps):
            wanted = '' if step is None else f' of step {step}'
            raise WorkdirError(
                f'no checkpoint{wanted} in {self.directory}; steps there: {list_steps(steps)}'
            )
        if step is None:
            for intact in self.intact_steps():
                for damaged in [] if self._read_only else steps[steps.index(intact) + 1 :]:
                    (self.path(damaged) / manifest.NAME).replace(self.path(damaged) / DAMAGED)
                return intact
            step = steps[-1]
        damage = manifest.find_damage(self.path(step))
        if damage is not None:
            others = list_steps([other for other in steps if other != step])
            raise WorkdirError(
                f'checkpoint {self.path(step)} is damaged: {damage}; other steps: {others}'
            )
        return step

    def _make_room(self, step: int) -> int:
        """Delete the torn and damaged steps of earlier runs, then make the step's directory."""
        for torn in set(self._all_steps()) - set(self.valid_steps()):
            logging.warning('removing %s, which is torn or damaged', self.path(torn))
            self.path(torn).rmtree()
        self.path(step).mkdir(parents=True)
        return step

    def _finish(self, step: int, record: str) -> None:
        """Wait for Orbax, write the manifest and delete old steps; runs in a thread of its own."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                (self.path(step) / META).write_text(record)
                manifest.write(self.path(step))
                self._remove_steps_not_kept()
        except Exception as failure:  # `wait` raises it: an exception in a thread would be lost.
            self._failure = failure

    def _remove_steps_not_kept(self) -> None:
        steps = self.valid_steps()
        for step in set(steps[: -self.keep]) - self.protected_steps():
            # The manifest first: if the run is killed in between, the step is torn.
            (self.path(step) / manifest.NAME).unlink()
            self.path(step).rmtree()


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def list_steps(steps: Sequence[int]) -> str:
    """Format steps for a message: '1, 2, 10', or 'none'."""
    return ', '.join(map(str, steps)) or 'none'
