"""The compute that an ablation has cost: every run under its root, also those that failed.

A run is counted wherever its times.jsonl is, as far as that tells: what a SIGKILL cut off since its
last line is not in it, nor a folder that was deleted. Runs that a group trained side by side have
equal shares of its time.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from etils import epath

from transformer_jax.ablation.field_types import is_finite
from transformer_jax.efficiency.time_spent import REDONE, STEPS, TimeSpent, read_stretches
from transformer_jax.errors import WorkdirError
from transformer_jax.storage.json_files import NUMBER, find_misfit, read_json_if_there
from transformer_jax.storage.seed_group_file import read_groups

SOUND, UNFINISHED, OUTSIDE = 'sound', 'unfinished', 'outside'
# Where a times.jsonl may be, below the root: VARIANT/SEED/, and folders below those, such as of
# runs that chose a setting.
DEPTHS = ('*/*', '*/*/*', '*/*/*/*')
Place = tuple[str, ...]  # of a folder, below the root: (folder of the variant, seed)
# What a cause of TimeSpent counts as; every other cause is 'other'.
KINDS = {
    STEPS: 'training',
    REDONE: 'training',
    'wait': 'training',
    'evaluate': 'evaluation',
    'compile': 'compilation',
}
SECONDS = ('training', 'evaluation', 'compilation', 'other')
PART = {'runs': int, **dict.fromkeys(SECONDS, NUMBER), 'flops': NUMBER, 'without_flops': int}
SHAPE = {SOUND: PART, UNFINISHED: PART, OUTSIDE: PART, 'damaged': [str]}


def compute_spent(
    root: epath.Path, planned: Collection[Place], sound: Collection[Place]
) -> dict[str, Any]:
    """Sum the compute under a root.

    Args:
        root: of the ablation.
        planned: (folder, seed) of the runs that the table has.
        sound: those of them that have a sound result.

    Returns:
        'sound', 'unfinished' (planned, without a sound result, or a group taken apart) and
        'outside' (of a variant or seed that the table has no more, or of a run that chose a
        setting), each with the number of `runs`, wall-clock seconds of `training`, `evaluation`,
        `compilation` and `other`, `flops` (of steps, forward and backward, on all devices) and
        `without_flops`, the runs whose steps have none recorded; and 'damaged': the files that
        could not be read.
    """
    parts = {key: dict.fromkeys(PART, 0) for key in (SOUND, UNFINISHED, OUTSIDE)}
    damaged: list[str] = []
    variants = {folder for folder, *_ in planned}

    def part_of(run: Place) -> dict[str, Any]:
        # Beside seeds there are the folders of groups that were taken apart.
        broken_up = len(run) == 2 and run[0] in variants and not run[1].isdecimal()
        lost = run in planned or broken_up
        return parts[SOUND if run in sound else UNFINISHED if lost else OUTSIDE]

    for folder, spent in _read_all(root, 'times.jsonl', _spent, damaged):
        for member in spent['members']:
            part = part_of(_place(root, folder.parent / member))
            part['runs'] += 1
            part['without_flops'] += spent['without_flops']
            for key in (*SECONDS, 'flops'):
                part[key] += spent[key] / len(spent['members'])
    for folder, seconds in _read_all(root, 'evaluations.json', _scoring_seconds, damaged):
        part_of(_place(root, folder))['evaluation'] += seconds
    return {**parts, 'damaged': damaged}


def sound_compute(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `compute` of a results.json; None where there is none, or one of another shape."""
    compute = results.get('compute')
    if compute is None or find_misfit(compute, SHAPE):
        return None
    values = [value for key in (SOUND, UNFINISHED, OUTSIDE) for value in compute[key].values()]
    return compute if all(is_finite(value) and value >= 0 for value in values) else None


def _read_all(
    root: epath.Path, name: str, read: Callable[[epath.Path], Any], damaged: list[str]
) -> Iterator[tuple[epath.Path, Any]]:
    """Yield (folder, content) of every file of a name; append those that are damaged."""
    for depth in DEPTHS:
        for path in sorted(root.glob(f'{depth}/{name}')):
            try:
                yield path.parent, read(path)
            except WorkdirError:
                damaged.append('/'.join(_place(root, path)))


def _place(root: epath.Path, path: epath.Path) -> Place:
    return path.relative_to(root).parts


def _spent(path: epath.Path) -> dict[str, Any]:
    """Read a times.jsonl: seconds by kind, FLOPs, and the names of the runs that share them."""
    stretches, folder = read_stretches(path), path.parent
    seconds: dict[str, float] = dict.fromkeys(SECONDS, 0.0)
    for cause, taken in TimeSpent(stretches).seconds.items():
        seconds[KINDS.get(cause, 'other')] += taken
    flops = math.fsum(stretch.flops or 0.0 for stretch in stretches)
    if not all(map(is_finite, (*seconds.values(), flops))):
        raise WorkdirError(f'{path} is damaged (not finite): delete that line')
    group = read_groups(folder.parent).get(folder.name)
    return {
        **seconds,
        'flops': flops,
        'without_flops': int(any(s.flops is None and s.last > s.first for s in stretches)),
        'members': group.members if group else [folder.name],
    }


def _scoring_seconds(path: epath.Path) -> float:
    made = read_json_if_there(path, [dict], 'restore it') or []
    return math.fsum(one['seconds'] for one in made if is_finite(one.get('seconds')))
