"""What tells one run from all others, and what each of its checkpoints must agree with.

A folder named like a step may be a copy of another step, or come from another run, and config.json
may have been edited: arrays of the right shapes would then be taken for something that they are
not. So every checkpoint says which run, step and configuration it is of, and all three are compared
wherever one is read. What a checkpoint of an earlier version does not say is not compared.
"""

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.schema import flatten
from transformer_jax.storage.config_changes import refused_changes
from transformer_jax.storage.config_versions import migrate_config


def new_run_id() -> str:
    """Make the identity of a run that begins: 32 hexadecimal digits."""
    return uuid.uuid4().hex


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """A run as its config.json describes it.

    Attributes:
        config_path: of its config.json.
        run_id: made at its first start; '' for a run that an earlier version began.
        config: flat, of today's keys.
    """

    config_path: epath.Path
    run_id: str
    config: Mapping[str, Any]

    def require(self, record: Mapping[str, Any], path: epath.Path) -> None:
        """Check that the checkpoint in a folder is the one of this run that its name says.

        Args:
            record: the content of its meta.json.
            path: of its folder, named by its step.

        Raises:
            WorkdirError: it is of another run, step or configuration.
        """
        folder = self.config_path.parent
        require_step(record, path)
        if self.run_id and record.get('run', self.run_id) != self.run_id:
            raise WorkdirError(
                f'checkpoint {path} is of another run than {self.config_path}: move it out of '
                f'{folder}, or restore the {self.config_path.name} that belongs to it'
            )
        if 'config' in record['meta']:
            self.require_config(record['meta']['config'], path)

    def require_config(
        self, stored: Mapping[str, Any], path: epath.Path, ignored: tuple[str, ...] = ()
    ) -> None:
        """Compare the configuration that a checkpoint was written with, but for `ignored` keys.

        Raises:
            WorkdirError: they differ in a key that must not change; the message lists the keys.
        """
        before = flatten(migrate_config(stored, str(path)))
        # Which engine computed the updates is no property of the arrays; resuming compares it.
        common = before.keys() & self.config.keys() - {'model.engine', *ignored}
        # Whether the steps of this run may grow was decided when config.json was written.
        lines = refused_changes(
            {key: before[key] for key in common},
            {key: self.config[key] for key in common},
            steps_may_grow=True,
        )
        if lines:
            raise WorkdirError(
                f'checkpoint {path} was written with another configuration than '
                f'{self.config_path} has ({"; ".join(lines)}): restore that file, or move the '
                f'checkpoint out of {self.config_path.parent}'
            )


def require_step(record: Mapping[str, Any], path: epath.Path) -> None:
    """Raise WorkdirError where the folder of a checkpoint is named by another step than it has."""
    step = record['step']
    if str(step) != path.name:
        raise WorkdirError(
            f'checkpoint {path} is of step {step}: name the folder {step}, or move it out of '
            f'{path.parent}'
        )
