"""The folders of a run's checkpoints: which steps there are, are whole, and are kept.

A step counts only if it has MANIFEST.json, the last file written, and is read only if it matches
its manifest and belongs to the run.
"""

import re
from collections.abc import Iterator, Sequence

from absl import logging
from etils import epath

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.files import (
    delete_directory,
    delete_file,
    exists,
    is_link,
    rename_file,
    wrap_os_errors,
    wrap_read_errors,
)
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.run_identity import RunIdentity, require_step

META = 'meta.json'
# The manifest of a damaged step is renamed to this, so that the step no longer counts and can be
# saved again.
DAMAGED = 'DAMAGED.json'
SHAPE = {'step': int, 'meta': dict, 'arrays': {str: str}}  # of meta.json


class CheckpointFolders:
    """The checkpoints of one run as folders; `Checkpoints` adds the arrays."""

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        read_only: bool = False,
        run: RunIdentity | None = None,
    ):
        """Open the checkpoints of a directory.

        Args:
            directory: the run's checkpoints/; need not exist yet.
            keep: how many of the newest steps are kept, besides the best one; at least 1.
            read_only: never change a file, damaged or not.
            run: the run that they must be of; None: only the step is compared. A checkpoint of
                another run is refused wherever it is read, and never skipped or deleted: someone
                has put it there.
        """
        if keep < 1:
            raise ConfigError(f'checkpoint.keep={keep}: at least 1 checkpoint must be kept')
        self.directory = absolute_path(directory)
        self.keep = keep
        self.read_only = read_only
        self.run = run

    def path(self, step: int) -> epath.Path:
        """Return the directory of a step."""
        return self.directory / str(step)

    def valid_steps(self) -> list[int]:
        """List the steps that were written completely, ascending.

        Cheap: reads no file; the contents are verified when they are restored.
        """
        return [step for step in self._all_steps() if exists(self.path(step) / manifest.NAME)]

    def intact_steps(self) -> Iterator[int]:
        """Yield the valid steps that match their manifest, newest first.

        Logs a warning for each damaged step, which names the damaged file.

        Raises:
            WorkdirError: a step is of another run, step or configuration.
        """
        for step in reversed(self.valid_steps()):
            damage = manifest.find_damage(self.path(step))
            if damage is None:
                self.record(step)
                yield step
            else:
                logging.warning(
                    'checkpoint %s %s', self.path(step), manifest.describe_damage(damage)
                )

    def meta(self, step: int) -> dict:
        """Return the `meta` that was saved with a valid step.

        Raises:
            WorkdirError: meta.json is damaged, or of another run, step or configuration.
        """
        return self.record(step)['meta']

    def best_step(self) -> int | None:
        """Return the step that the newest undamaged meta.json records as the best so far."""
        return self._recorded_step('best')

    def _recorded_step(self, key: str) -> int | None:
        for step in reversed(self.valid_steps()):
            try:
                best = self.meta(step).get(key)
                return best['step'] if best else None
            except manifest.Damaged as error:
                logging.warning('%s', error)
        return None

    def protected_steps(self) -> set[int | None]:
        """Return the steps that are kept although they are not among the newest: the best ones."""
        return {self.best_step(), self._recorded_step('best_if_longer')}

    def _all_steps(self) -> list[int]:
        if not exists(self.directory):
            return []
        with wrap_read_errors(self.directory):
            names = [path.name for path in self.directory.iterdir()]
        return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))

    def record(self, step: int) -> dict:
        """Read the meta.json of a step; everything that is read of a checkpoint begins here."""
        path = self.path(step)
        remedy = f'delete {path}, or restore it from a copy'
        text = manifest.read_text(path, META)
        record = parse_json(text, str(path / META), SHAPE, remedy, manifest.Damaged)
        require_step(record, path)
        if self.run is not None:
            self.run.require(record, path)
        return record

    def verified_step(self, step: int | None) -> int:
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
                for damaged in [] if self.read_only else steps[steps.index(intact) + 1 :]:
                    rename_file(self.path(damaged) / manifest.NAME, DAMAGED)
                return intact
            step = steps[-1]
        damage = manifest.find_damage(self.path(step))
        if damage is not None:
            others = list_steps([other for other in steps if other != step])
            raise WorkdirError(
                f'checkpoint {self.path(step)} {manifest.describe_damage(damage)}; '
                f'other steps: {others}'
            )
        return step

    def make_room(self, step: int) -> int:
        """Delete the torn and damaged steps of earlier runs, then make the step's directory."""
        for torn in set(self._all_steps()) - set(self.valid_steps()):
            logging.warning('removing %s, which is torn or damaged', self.path(torn))
            self._remove(torn)
        with wrap_os_errors(self.path(step)):
            self.path(step).mkdir(parents=True)
        return step

    def remove_steps_not_kept(self) -> None:
        """Delete the steps that are neither among the newest nor protected.

        What cannot be deleted stays, with a warning: the run does not depend on it.
        """
        try:
            steps = self.valid_steps()
            superfluous = set(steps[: -self.keep]) - self.protected_steps()
        except (OSError, WorkdirError) as error:
            logging.warning('old checkpoints are kept: %s', error)
            return
        for step in sorted(superfluous):
            self._remove(step)

    def _remove(self, step: int) -> None:
        try:
            # The manifest first: if the run is killed in between, the step is torn.
            if not is_link(self.path(step)):
                delete_file(self.path(step) / manifest.NAME)
            delete_directory(self.path(step))
        except WorkdirError as error:
            logging.warning('cannot remove the old checkpoint %s (%s)', self.path(step), error)


def list_steps(steps: Sequence[int]) -> str:
    """Format steps for a message: '1, 2, 10', or 'none'."""
    return ', '.join(map(str, steps)) or 'none'
