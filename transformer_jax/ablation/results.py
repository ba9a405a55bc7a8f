"""The files of an ablation's root, read strictly: a missing or damaged run is named, not skipped.

- experiment.json: claims, metrics, published numbers, seeds, and the folder and config of
  every variant
- <folder>/tuning.json: what was chosen for a variant, and by which tries, see `choices`
- <folder>/<seed>/: the workdir of a run, with these files once it is scored:
  - result.json: scores, size, speed, machine
  - sentences.json: what the scores are made of, sentence by sentence
  - failure.json: why the run failed, if it did
- results.json: all of this in one file, without the sentences
"""

import contextlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.choices import add_choices
from transformer_jax.ablation.compute import compute_spent
from transformer_jax.ablation.field_types import is_finite
from transformer_jax.ablation.result_shapes import migrate_experiment, read_result
from transformer_jax.ablation.run_facts import run_facts
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.ranges import shorten
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.config_changes import config_changes, may_change
from transformer_jax.storage.config_versions import migrate_config
from transformer_jax.storage.files import exists, write_text
from transformer_jax.storage.json_files import Optional, find_misfit, read_json, read_json_if_there
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.metrics_writer import read_sound_events
from transformer_jax.storage.paths import absolute_path

EXPERIMENT, RESULT, FAILURE, SENTENCES, RESULTS = (
    'experiment.json',
    'result.json',
    'failure.json',
    'sentences.json',
    'results.json',
)


class Damaged(Exception):
    """Raised for a run that cannot be used; it says why."""


def load_results(path: epath.PathLike) -> dict[str, Any]:
    """Load the results of an ablation.

    Args:
        path: the root of one, or a results.json that it wrote.

    Returns:
        `experiment`: the content of experiment.json; `runs`: the sound ones, each the content of
        its result.json with its `folder`, and with `facts`, see `run_facts`; `missing`: all others
        of the plan, with `folder`, `seed` and `why`; `compute`, see `compute_spent`. Files of
        earlier versions have neither `facts` nor `compute`.

    Raises:
        ConfigError: `path` is neither.
        WorkdirError: experiment.json or results.json is damaged.
    """
    path = absolute_path(path)
    if path.is_dir():
        return collect(path)
    if not exists(path):
        raise ConfigError(f'{path}: there is no such root of an ablation, nor a results.json')
    content = _read(path)
    shape = {'experiment': dict, 'runs': list, 'missing': Optional(list)}
    if fault := find_misfit(content, shape):
        raise WorkdirError(f'{path} is no results.json of ablate: {fault}')
    experiment = _checked(content['experiment'], path)

    def find(key: str, folder: str, seed: int) -> dict[str, Any]:
        entries = [entry for entry in content.get(key, ()) if isinstance(entry, dict)]
        return next(
            (
                entry
                for entry in entries
                if (entry.get('folder'), entry.get('seed')) == (folder, seed)
            ),
            {},
        )

    def run_of(folder: str, seed: int) -> dict[str, Any]:
        found = find('runs', folder, seed)
        if not found:
            raise Damaged(find('missing', folder, seed).get('why', f'not in {path.name}'))
        return check_result(found, seed, experiment)

    known = {'compute': content['compute']} if 'compute' in content else {}
    return _gather(experiment, run_of) | known


def collect(root: epath.Path) -> dict[str, Any]:
    """Load results as `load_results`, from the folders of a root."""
    if not exists(root / EXPERIMENT):
        raise ConfigError(
            f'{root} has no {EXPERIMENT}: name the --root of an ablation, or a results.json'
        )
    experiment = read_experiment(root / EXPERIMENT)
    add_choices(experiment, root)
    configs = {variant['folder']: variant['config'] for variant in experiment['variants'].values()}

    def run_of(folder: str, seed: int) -> dict[str, Any]:
        workdir, config = root / folder / str(seed), configs[folder]
        run = read_run(workdir, seed, config, experiment)
        best_metric = config.get('evaluate.best_metric', '')  # A damaged file may lack it.
        return run | {'facts': run_facts(workdir, run, experiment['metrics'], best_metric)}

    found = _gather(experiment, run_of)
    runs, missing = (
        {(entry['folder'], str(entry['seed'])) for entry in found[key]}
        for key in ('runs', 'missing')
    )
    return found | {'compute': compute_spent(root, runs | missing, runs)}


def write_results(root: epath.Path) -> None:
    """Write results.json from the folders of a root.

    It has a line for each variant and run, so that a commit shows what changed.
    """
    write_text(root / RESULTS, _lines(collect(root), 3) + '\n')


def read_experiment(path: epath.Path) -> dict[str, Any]:
    """Read the content of an experiment.json; raise WorkdirError where it is damaged."""
    return _checked(_read(path), path)


def read_run(
    workdir: epath.Path, seed: int, config: Mapping[str, Any], experiment: Mapping[str, Any]
) -> dict:
    """Read the result.json of a run.

    Args:
        workdir: of the run.
        seed: its `train.seed`.
        config: what it must have been trained with, flat; the seed does not count.
        experiment: what must have been measured: the content of experiment.json.

    Raises:
        Damaged: there is no result, or it cannot be used.
    """
    if not exists(workdir / RESULT):
        raise Damaged(_unfinished(workdir, config))
    try:
        path = workdir / 'config.json'
        stored = read_json(path, {}, 'delete the folder, ablate trains it again')
        there = config_lib.flatten(migrate_config(stored, str(path)))
        result = read_json(workdir / RESULT, {}, 'delete it, ablate scores the run again')
    except WorkdirError as error:
        raise Damaged(str(error).replace(f'{workdir}/', '')) from error
    other = differences(there, config)
    if other:
        raise Damaged(f'of another version of the experiment: {"; ".join(other)}')
    return check_result(result, seed, experiment)


def check_result(result: Any, seed: int, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result that has everything that was asked for, or raise Damaged."""
    result, fault = read_result(result)
    if fault:
        raise Damaged(f'damaged: in {RESULT} {fault}')
    if result['seed'] != seed:
        raise Damaged(f'damaged: {RESULT} is of seed {result["seed"]}')
    for metric in experiment['metrics']:
        score = result['scores'].get(metric['label'])
        if not is_finite(score):
            said = 'not measured' if score is None else shorten(score).strip("'")
            raise Damaged(f'its {metric["label"]} is {said}')
        selected = result.get('selected', {}).get(metric['label'], metric['checkpoint'])
        if selected != metric['checkpoint']:
            raise Damaged(
                f'its {metric["label"]} is of checkpoint={selected!r}, not {metric["checkpoint"]!r}'
            )
    return result


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], besides: Collection[str] = ()
) -> list[str]:
    """List the differences that make two flat configs different runs: 'key: old -> new'.

    Seeds do not count, nor the keys `besides`.
    """
    return [
        line
        for key, line in config_changes(old, new).items()
        if key != 'train.seed' and key not in besides and not may_change(key)
    ]


def holds_other(
    folder: epath.Path, config: ExperimentConfig, besides: Collection[str] = ()
) -> bool:
    """Whether a folder has runs, or tries, of another config than this one, see `differences`."""
    wanted = config_lib.flatten(config)
    for path in (*folder.glob('*/config.json'), *folder.glob('tries/*,seed=*/config.json')):
        # A group of seeds has the config of them all.
        if path.parent.parent == folder and not path.parent.name.isdecimal():
            continue
        with contextlib.suppress(WorkdirError):  # What is damaged is named when it is opened.
            stored = migrate_config(read_json(path, {}, 'delete it'), str(path))
            if differences(config_lib.flatten(stored), json.loads(to_json(wanted)), besides):
                return True
    return False


def folders(experiment: Mapping[str, Any]) -> list[str]:
    """List the folders of the variants in their order, each once."""
    return list(dict.fromkeys(variant['folder'] for variant in experiment['variants'].values()))


def _lines(value: Any, depth: int, indent: str = '') -> str:
    """Write JSON with a line for each value down to `depth`, and for each object of a list."""
    inner = indent + ' '
    if depth and value and isinstance(value, dict):
        left, right = '{}'
        items = [f'{to_json(k)}: {_lines(v, depth - 1, inner)}' for k, v in value.items()]
    elif depth and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        left, right = '[]'
        items = [to_json(item) for item in value]
    else:
        return to_json(value)
    return left + ','.join(f'\n{inner}{item}' for item in items) + f'\n{indent}{right}'


def _gather(experiment: dict[str, Any], run_of: Any) -> dict[str, Any]:
    runs, missing = [], []
    for folder in folders(experiment):
        for seed in experiment['seeds']:
            try:
                runs.append({'folder': folder} | run_of(folder, seed))
            except Damaged as why:
                missing.append({'folder': folder, 'seed': seed, 'why': str(why)})
    return {'experiment': experiment, 'runs': runs, 'missing': missing}


def _unfinished(workdir: epath.Path, config: Mapping[str, Any]) -> str:
    """Say why a run has no result."""
    try:
        failure = read_json_if_there(workdir / FAILURE, {'error': str}, 'delete it')
    except WorkdirError:
        return f'failed; {FAILURE} is damaged'
    if failure is not None:
        return f'failed: {failure["error"]}'
    event = last_event(workdir)
    return (
        f'not finished: at step {event["step"]} of {config["train.steps"]}' if event else 'not run'
    )


def last_event(workdir: epath.Path) -> dict[str, Any]:
    """Read the last event of training in a run's metrics.jsonl; {} where there is none yet."""
    events = reversed(read_sound_events(workdir / 'metrics.jsonl'))
    return next((event for event in events if event['split'] == 'train'), {})


def _checked(experiment: Any, path: epath.Path) -> dict[str, Any]:
    """Return the content of an experiment.json, in its present form, or raise WorkdirError."""
    if fault := migrate_experiment(experiment):
        raise WorkdirError(
            f'{path} does not describe an experiment ({fault}): it is damaged, or was not written '
            'by ablate'
        )
    return experiment


def _read(path: epath.Path) -> Any:
    return read_json(path, object, 'restore it from a copy')
