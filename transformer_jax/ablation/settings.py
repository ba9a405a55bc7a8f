"""The distinct configs of an experiment, each with its variants and its folder under the root."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.choices import TUNING, read_choice, tune_changes
from transformer_jax.ablation.experiment import slug
from transformer_jax.ablation.tune import Tune
from transformer_jax.errors import WorkdirError
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.json_text import to_json

# Files under a root, which no variant may have as its folder.
RESERVED = (results.EXPERIMENT, results.RESULTS, 'report')
LONGEST_FOLDER = 200  # letters; file systems take 255
SHORTENED = 60  # letters of the name in a folder that has its hash too


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config of the experiment, with the variants that share it.

    Attributes:
        folder: under the root, of all its trials.
        variants: their names.
        config: with the first seed; once it is tuned, with the values that were chosen.
    """

    folder: str
    variants: tuple[str, ...]
    config: ExperimentConfig


def settings_of(
    configs: dict[str, ExperimentConfig],
    earlier: dict[str, Any],
    holds_other: Callable[[str, ExperimentConfig], bool] = lambda folder, config: False,
) -> tuple[Setting, ...]:
    """Group variants by config, each with its folder.

    A variant keeps the folder that it had, and so does a config under another name.

    Args:
        configs: variant -> its configuration, in the order of the experiment.
        earlier: the `variants` of the experiment.json of the root; {} where there is none.
        holds_other: whether a folder has runs of another config, left by a variant that is gone.
    """
    names: dict[str, list[str]] = {}
    for name, config in configs.items():
        names.setdefault(_key(config_lib.flatten(config)), []).append(name)
    by_config = {_key(variant['config']): variant['folder'] for variant in earlier.values()}
    folders = {
        key: next(earlier[name]['folder'] for name in members if name in earlier)
        for key, members in names.items()
        if any(name in earlier for name in members)
    }
    for key in names:
        had = by_config.get(key)
        if key not in folders and had is not None and had not in folders.values():
            folders[key] = had
    taken = {*RESERVED, *folders.values(), *by_config.values()}
    for key, members in names.items():
        if key not in folders:
            while holds_other(chosen := choose_folder(members[0], taken), configs[members[0]]):
                taken.add(chosen)
            folders[key] = chosen
            taken.add(chosen)
    return tuple(
        Setting(folders[key], tuple(members), configs[members[0]]) for key, members in names.items()
    )


def tuned_settings(
    settings: Sequence[Setting], tune: Tune, root: epath.Path
) -> tuple[tuple[Setting, ...], dict[str, dict[str, Any]]]:
    """Give settings the values that were chosen for them under a root.

    Returns:
        all settings, those that are not tuned yet as they were; and folder -> the content of
        tuning.json, of the others.

    Raises:
        WorkdirError: a tuning.json is damaged, or of another version of the experiment.
    """
    choices = {}
    for setting in settings:
        choice = read_choice(root / setting.folder)
        if choice is None:
            continue
        wanted = json.loads(to_json(config_lib.flatten(setting.config)))
        other = [
            *tune_changes(choice['tune'], tune.as_json()),
            *results.differences(choice['config'], wanted, tune.values),
        ]
        if other:
            raise WorkdirError(
                f'{root / setting.folder / TUNING} is of another version of the experiment '
                f'({"; ".join(other)}): take another --root, or delete {root / setting.folder}'
            )
        choices[setting.folder] = choice
    tuned = tuple(
        dataclasses.replace(
            setting, config=config_lib.override(setting.config, choices[setting.folder]['chosen'])
        )
        if setting.folder in choices
        else setting
        for setting in settings
    )
    return tuned, choices


def choose_folder(name: str, taken: Collection[str]) -> str:
    """Choose the folder of a variant.

    It is the slug of the name. Where that is taken, also by a folder that differs in case alone
    (some file systems take both for one), or is too long, a hash of the name follows.
    """
    used = {folder.casefold() for folder in taken}
    folder = slug(name)
    if folder.casefold() not in used and len(folder) <= LONGEST_FOLDER:
        return folder
    digest = hashlib.sha256(name.encode()).hexdigest()
    candidates = (f'{folder[:SHORTENED]}-{digest[:size]}' for size in range(6, len(digest)))
    return next(candidate for candidate in candidates if candidate.casefold() not in used)


def _key(flat: dict[str, Any]) -> str:
    return to_json(
        {key: value for key, value in flat.items() if key != 'train.seed'}, sort_keys=True
    )
