"""A group of seeds: runs that are trained in one program and share their checkpoints."""

import dataclasses

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import exists
from transformer_jax.storage.first_checkpoint import first_checkpoint
from transformer_jax.storage.paths import absolute_path

# Keys in which the members of a group may differ: the order of the data, and the numbers of
# `train_state.Hyper`, which are arrays of the compiled program.
MAY_DIFFER = (
    'train.seed',
    'optim.learning_rate',
    'model.dropout',
    'train.label_smoothing',
    'optim.weight_decay',
)


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """The folders of a group of seeds.

    `train` has one group in a workdir W: its parent is W and its name '.'. `ablate` has groups such
    as '0-1-2' in the folder of each setting, beside the workdirs of their members.

    Attributes:
        parent: the folder that holds the members' workdirs, and seed_groups.json.
        name: of the folder in `parent` that is the group's own workdir.
        members: the names of the members' folders, in the order of the stacked axis of the
            checkpoints.
        released: the members that were deleted and are trained again alone. Their slices stay in
            the checkpoints and are read no more.
    """

    parent: epath.Path
    name: str
    members: tuple[str, ...]
    released: tuple[str, ...] = ()

    @property
    def path(self) -> epath.Path:
        """The group's own workdir, with checkpoints/ and tokenizer/ of all members."""
        return absolute_path(self.parent / self.name)

    @property
    def member_paths(self) -> tuple[epath.Path, ...]:
        """The workdirs of all members, in order."""
        return tuple(self.parent / name for name in self.members)

    def has_member(self, name: str) -> bool:
        """Whether the run in a folder of `parent` belongs to the group, and was not released."""
        return name in self.members and name not in self.released

    def require_workdir(self, member: epath.Path) -> None:
        """Raise WorkdirError where `member` is there, but the group's own workdir was deleted."""
        if holds_run(member) and not exists(self.path):
            raise missing_group(member, self.path)

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint of the group was ever complete, although it may not be there now."""
        return first_checkpoint(self.path) is not None


def holds_run(path: epath.Path) -> bool:
    """Whether a run was begun in the workdir `path`; False where that was deleted or just made."""
    names = ('config.json', 'metrics.jsonl', 'checkpoints')
    return any(exists(path / name) for name in names)


def missing_group(member: epath.Path, group_path: epath.Path) -> WorkdirError:
    """Make the error about a run whose group was deleted, and with it its checkpoints."""
    return WorkdirError(
        f'{member} was trained together with other runs in {group_path}, which is gone: delete '
        f'{member} too'
    )
