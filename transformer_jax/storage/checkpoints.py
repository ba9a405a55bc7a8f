"""Checkpoints that are verified before they are used: Orbax behind one small class.

Orbax restores flipped bits, casts dtypes and takes an empty directory for the newest step without a
word. So a step counts only once MANIFEST.json, the last file written, has size and SHA-256 of its
other files:

    checkpoints/<step>/state/          the train state as Orbax writes it (OCDBT)
    checkpoints/<step>/meta.json       step, the caller's meta, and name, dtype and shape of every array
    checkpoints/<step>/MANIFEST.json   written last; a step without it is torn and does not count

`AsyncCheckpointer` rather than `CheckpointManager`: which steps exist, count and are kept is
decided by the manifests, and the manager would keep a second, conflicting account of it.
"""

import hashlib
import itertools
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
from transformer_jax.storage.files import absolute, from_primary, reported

META = 'meta.json'
# A damaged step's manifest gets this name, so that the step is torn from then on and can be
# saved again.
DAMAGED = 'DAMAGED.json'


class Checkpoints:
    """The checkpoints of one run.

    In a run of several processes every process calls `save`, `wait`, `restore` and `params` alike,
    over one shared file system; manifests, verification and deletion are the work of process 0.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, read_only: bool = False):
        """Keeps the last `keep` steps and the best one. `read_only` never changes a file, damaged
        or not.
        """
        if keep < 1:
            raise ConfigError(f'checkpoint.keep={keep}: at least 1 checkpoint must be kept')
        self.directory = absolute(directory)
        self.keep = keep
        self._read_only = read_only
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._finisher: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts writing `state` (a pytree of arrays) and `meta` (JSON); both are free once
        this returns.

        `meta['best']` is None or a mapping whose 'step' names the best step, which retention
        spares. Call `wait` before the program ends: a save that the interpreter's exit cuts short
        is torn.

        Raises:
            WorkdirError: the step exists already, the directory is not writable, or the previous
                save failed.
        """
        self.wait()
        if self._read_only or step in self.valid_steps():
            reason = 'opened read-only' if self._read_only else 'the step exists already'
            raise WorkdirError(f'cannot save {self.path(step)}: {reason}')
        record = json.dumps({'step': step, 'meta': meta, 'arrays': _describe(state)}, indent=1)
        with reported(self.directory):
            from_primary(lambda: self._make_room(step))
            self._orbax.save(self.path(step) / 'state', args=ocp.args.PyTreeSave(state))
        self._finisher = threading.Thread(
            target=self._finish, args=(step, record), name=f'checkpoint {step}'
        )
        self._finisher.start()

    def wait(self) -> None:
        """Returns once the last save, its manifest included, is on disk; raises WorkdirError if
        it failed.
        """
        if self._finisher is None:
            return
        self._finisher.join()
        name, failure = self._finisher.name, self._failure
        self._finisher = self._failure = None
        if failure is not None:
            reason = str(failure).splitlines()[0][
                -160:
            ]  # TensorStore tells at length where, then what.
            raise WorkdirError(
                f'{name} was not saved in {self.directory}: {reason}; make room or choose another '
                '--workdir'
            ) from failure
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    def path(self, step: int) -> epath.Path:
        """The directory of a step."""
        return self.directory / str(step)

    def valid_steps(self) -> list[int]:
        """The steps written to the end, ascending; cheap: their contents are verified
        when restored.
        """
        return [step for step in self._all_steps() if (self.path(step) / manifest.NAME).exists()]

    def intact_steps(self) -> Iterator[int]:
        """The valid steps whose files are as written, newest first; logs the others and their
        bad file.
        """
        for step in reversed(self.valid_steps()):
            damage = manifest.damage(self.path(step))
            if damage is None:
                yield step
            else:
                logging.warning('checkpoint %s is damaged: %s', self.path(step), damage)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict]:
        """Verifies and restores a step, by default the newest intact one; returns (step,
        state, meta).

        Args:
            abstract_state: a pytree of `jax.ShapeDtypeStruct`, whose shardings the arrays get
                whatever the mesh was that wrote them; a leaf without one goes to the first device.
            step: where given, a damaged step raises; otherwise damaged newer steps are logged,
                naming the bad file, and stop counting, so that the run can save the same
                step again.

        Raises:
            WorkdirError: no such step, or it is damaged (which file).
            ConfigError: a name, shape or dtype in `abstract_state` differs from what is stored
                (which array).
        """
        self.wait()
        step = from_primary(lambda: self._choose(step))
        record = self._record(step)
        _check_same(step, record['arrays'], _describe(abstract_state))
        targets = jax.tree.map(_target, abstract_state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
        args = ocp.args.PyTreeRestore(targets, restore_args=restore_args)
        return step, self._orbax.restore(self.path(step) / 'state', args=args), record['meta']

    def meta(self, step: int) -> dict:
        """What `save` was given as `meta` for a valid step; raises WorkdirError if that file
        is damaged.
        """
        return self._record(step)['meta']

    def best_step(self) -> int | None:
        """The step that the newest undamaged meta records as the best so far."""
        for step in reversed(self.valid_steps()):
            try:
                best = self.meta(step)['best']
                return best['step'] if best else None
            except WorkdirError as error:
                logging.warning('%s', error)
        return None

    def spared(self) -> set[int | None]:
        """The steps that retention spares beside the newest."""
        return {self.best_step()}

    def average(self, abstract_params: Any, n: int) -> Any:
        """The mean of the parameters of the newest `n` intact steps (Vaswani et al. 2017,
        section 6.1).
        """
        return self.params(abstract_params, select(self, f'avg:{n}'))

    def params(self, abstract_params: Any, steps: Sequence[int], name: str = 'params') -> Any:
        """The mean over `steps` of the parameters alone, summed in float64; verifies each step
        as `restore`.

        One step gives its parameters unchanged. Placed by the shardings of `abstract_params`.
        `name`: which part of the state they are, 'params' or, where `train.ema` is on, 'ema'.
        """
        self.wait()
        total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), abstract_params)
        for step in steps:
            from_primary(lambda step=step: self._choose(step))
            total = jax.tree.map(np.add, total, self._host_params(abstract_params, step, name))

        def placed(sum_: np.ndarray, abstract: jax.ShapeDtypeStruct) -> jax.Array:
            mean = np.asarray(sum_ / len(steps)).astype(abstract.dtype)
            return jax.make_array_from_callback(
                mean.shape, _target(abstract).sharding, lambda i: mean[i]
            )

        return jax.tree.map(placed, total, abstract_params)

    def _host_params(self, abstract_params: Any, step: int, part: str) -> Any:
        arrays = self._record(step)['arrays']
        stored = {name: arrays[name] for name in arrays if name.startswith(f'{part}/')}
        tree = {part: abstract_params}
        _check_same(step, stored, _describe(tree))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
        return self._orbax.restore(self.path(step) / 'state', args=args)[part]

    def _all_steps(self) -> list[int]:
        names = [path.name for path in self.directory.iterdir()] if self.directory.exists() else []
        return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))

    def _record(self, step: int) -> dict:
        return json.loads(manifest.read_text(self.path(step), META))

    def _choose(self, step: int | None) -> int:
        """The step to restore: the one asked for or the newest, intact either way."""
        steps = self.valid_steps()
        if not steps or step not in (None, *steps):
            wanted = '' if step is None else f' of step {step}'
            raise WorkdirError(
                f'no checkpoint{wanted} in {self.directory}; steps there: {_listed(steps)}'
            )
        if step is None:
            for intact in self.intact_steps():
                for damaged in [] if self._read_only else steps[steps.index(intact) + 1 :]:
                    (self.path(damaged) / manifest.NAME).replace(self.path(damaged) / DAMAGED)
                return intact
            step = steps[-1]
        damage = manifest.damage(self.path(step))
        if damage is not None:
            others = _listed([other for other in steps if other != step])
            raise WorkdirError(
                f'checkpoint {self.path(step)} is damaged: {damage}; other steps: {others}'
            )
        return step

    def _make_room(self, step: int) -> int:
        """Removes what earlier runs left torn, then makes the step's directory."""
        for torn in set(self._all_steps()) - set(self.valid_steps()):
            logging.warning('removing %s, which is torn or damaged', self.path(torn))
            self.path(torn).rmtree()
        self.path(step).mkdir(parents=True)
        return step

    def _finish(self, step: int, record: str) -> None:
        """Runs in its own thread: waits for Orbax, makes the step count, then removes what is
        not kept.
        """
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                (self.path(step) / META).write_text(record)
                manifest.write(self.path(step))
                self._remove_steps_not_kept()
        except Exception as failure:  # A thread cannot raise: `wait` does, with this as the cause.
            self._failure = failure

    def _remove_steps_not_kept(self) -> None:
        steps = self.valid_steps()
        for step in set(steps[: -self.keep]) - self.spared():
            (
                self.path(step) / manifest.NAME
            ).unlink()  # First: a run killed in between leaves a torn step.
            self.path(step).rmtree()


def select(checkpoints: Checkpoints, choice: str) -> tuple[int, ...]:
    """The steps that `--checkpoint=best|last|avg:N|STEP` means, newest first; `params` takes
    their mean.

    'last' and 'avg:N' pass over damaged steps, with a warning that names the bad file.

    Raises:
        ConfigError: nothing like that exists, or the choice is none of these; says what there is.
    """
    steps = checkpoints.valid_steps()
    match = re.fullmatch(
        '(?P<best>best)|(?P<last>last)|avg:(?P<n>[1-9][0-9]*)|(?P<step>[0-9]+)', choice
    )

    def refusal(reason: str) -> ConfigError:
        there = f'steps in {checkpoints.directory}: {_listed(steps)}'
        return ConfigError(f'--checkpoint={choice}: {reason}; {there}')

    if match is None:
        raise refusal('expected best, last, avg:N with N at least 1, or a step')
    if not steps:
        raise refusal('there is no checkpoint yet')
    if match['best'] or match['step']:
        step = checkpoints.best_step() if match['best'] else int(match['step'])
        if step not in steps:
            raise refusal(
                'no step is recorded as best' if step is None else f'there is no step {step}'
            )
        return (step,)
    n = int(match['n'] or 1)
    intact = tuple(itertools.islice(checkpoints.intact_steps(), n))
    if len(intact) < n:
        raise refusal(f'{n} intact checkpoints are needed and {len(intact)} exist')
    return intact


def fingerprint(state: Any, data: Any) -> str:
    """SHA-256 (hex) over the arrays of `state` (name, dtype, shape, bytes) and the data
    position (JSON).

    The same for jax and numpy arrays and whatever the sharding; every process must call it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(_named(state).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f'{name} {array.dtype}{list(array.shape)}\n'.encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(data, sort_keys=True).encode())
    return digest.hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _describe(tree: Any) -> dict[str, str]:
    """{'params/encoder/…': 'float32[8, 16]'}"""
    return {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in _named(tree).items()}


def _check_same(step: int, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name in sorted(stored.keys() | expected.keys()):
        there, here = (side.get(name, 'absent') for side in (stored, expected))
        if there != here:
            raise ConfigError(
                f'{name} is {there} in the checkpoint of step {step} and {here} in this model: use the '
                'configuration that the checkpoint was written with'
            )


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _listed(steps: Sequence[int]) -> str:
    return ', '.join(map(str, steps)) or 'none'
