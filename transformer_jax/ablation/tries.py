"""The tries of tuning: runs of a setting with other values, each in a folder of its own.

ROOT/VARIANT/tries/NAME/ is the workdir of a try, with the files of a run; NAME has its values and
its seed. Tries that differ in arrays of the compiled program alone share one, see `seed_group`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.settings import Setting
from transformer_jax.ablation.trial import Trial
from transformer_jax.ablation.tune import Tune, say_values
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.seed_group import MAY_DIFFER

FOLDER = 'tries'
LONGEST_NAME = 120  # letters of a folder; longer ones are cut, and have a hash


@dataclasses.dataclass(frozen=True)
class Try(Trial):
    """A run of tuning.

    Attributes:
        family: name of the folder -> try, of all tries of the same setting.
        place: of its values among `Tune.combinations`.
    """

    measured: ClassVar[bool] = False

    family: Mapping[str, 'Try'] = dataclasses.field(compare=False, repr=False)
    place: int

    def sibling(self, folder: str) -> 'Try | None':
        """Return the try of the same setting in a folder beside it; None where there is none."""
        return self.family.get(folder)

    def group_name(self, members: Sequence[Trial]) -> str:
        """Name the folder of the group of some tries of the same setting."""
        names = ' '.join(member.workdir.name for member in members)
        return f'{len(members)}-together-{_digest(names)}'


def make_tries(setting: Setting, tune: Tune, root: epath.Path) -> tuple[Try, ...]:
    """Make the tries of a setting, those of the same values next to each other."""
    folder, family = f'{setting.folder}/{FOLDER}', {}
    for place, values in enumerate(tune.combinations):
        name = f'{", ".join(setting.variants)}: {say_values(values)}'
        tried = Setting(folder, (name,), config_lib.override(setting.config, values))
        for seed in tune.all_seeds:
            workdir = root / folder / _folder_name(values, seed)
            family[workdir.name] = Try(tried, seed, workdir, family, place)
    return tuple(family.values())


def same_programs(tries: Sequence[Try]) -> list[list[Try]]:
    """Divide tries into those that can be trained in one program, if their batches allow it."""
    programs: dict[str, list[Try]] = {}
    for each in tries:
        flat = config_lib.flatten(each.setting.config)
        key = to_json({key: value for key, value in flat.items() if key not in MAY_DIFFER})
        programs.setdefault(key, []).append(each)
    return list(programs.values())


def _folder_name(values: Mapping[str, Any], seed: int) -> str:
    """Write values and a seed as the name of a folder.

    A hash follows where a letter had to be replaced, since another value may then look the same.
    """
    text = ','.join(f'{key}={value}' for key, value in values.items())
    name = re.sub(r'[^\w.,=+-]+', '-', text, flags=re.ASCII)[:LONGEST_NAME]
    if name != text.lower():
        name += f'-{_digest(to_json(values))}'
    return f'{name},seed={seed}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
