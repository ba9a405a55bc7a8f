"""What an ablation left in its root, read strictly: a run that is missing or damaged is named,
never passed over.

- experiment.json: claim, metrics, published numbers, seeds, and the folder and config of
  every variant
- <folder>/<seed>/: a workdir of training, where are also, once it is scored,
  - result.json: scores, size, speed, machine
  - sentences.json: what the scores are made of, sentence by sentence
  - failure.json: why the run failed, if it did
- results.json: all of this in one file, sentences aside
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.seed_values import references_of
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage.config_versions import migrate_config, migrate_flat_config
from transformer_jax.storage.files import absolute_path, wrap_os_errors, write_text
from transformer_jax.storage.workdir import config_changes, may_change

EXPERIMENT, RESULT, FAILURE, SENTENCES, RESULTS = (
    'experiment.json',
    'result.json',
    'failure.json',
    'sentences.json',
    'results.json',
)
# What a result.json holds beside its scores.
FACTS = (
    'seed',
    'params',
    'non_embedding_params',
    'flops',
    'step_seconds',
    'memory_bytes',
    'wall_seconds',
    'steps',
    'step',
    'machine',
    'commit',
    'date',
)
BY_METRIC = ('scores', 'examples', 'lengths', 'checkpoints')  # or by split: the objects in it


class Damaged(Exception):
    """A run that cannot be used, and why."""


def load_results(path: epath.PathLike) -> dict[str, Any]:
    """The results of an ablation.

    Args:
        path: the root of one, or a results.json that it wrote.

    Returns:
        `experiment`, see experiment.json; `runs`, the sound ones, each the content of its
        result.json with its `folder`; and `missing`, all others of the plan: `folder`, `seed`
        and `why`.

    Raises:
        ConfigError: neither of these.
        WorkdirError: the file of the whole is damaged.
    """
    path = absolute_path(path)
    if path.is_dir():
        return collect(path)
    if not path.exists():
        raise ConfigError(f'{path}: there is no such root of an ablation, nor a results.json')
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get('runs'), list):
        raise WorkdirError(f'{path} has no list of runs: it is no results.json of ablate')
    experiment = _checked(content.get('experiment'), path)

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

    return _gathered(experiment, run_of)


def collect(root: epath.Path) -> dict[str, Any]:
    """As `load_results`, of a root's folders."""
    if not (root / EXPERIMENT).exists():
        raise ConfigError(
            f'{root} has no {EXPERIMENT}: name the --root of an ablation, or a results.json'
        )
    experiment = read_experiment(root / EXPERIMENT)
    configs = {variant['folder']: variant['config'] for variant in experiment['variants'].values()}
    return _gathered(
        experiment,
        lambda folder, seed: read_run(root / folder / str(seed), seed, configs[folder], experiment),
    )


def write_results(root: epath.Path) -> None:
    """Writes results.json anew from a root's folders: a line for each variant and run, since it is
    to be committed.
    """
    with wrap_os_errors(root / RESULTS):
        write_text(root / RESULTS, _lines(collect(root), 3) + '\n')


def read_experiment(path: epath.Path) -> dict[str, Any]:
    """The content of an experiment.json; raises WorkdirError where that is damaged."""
    return _checked(_read(path), path)


def read_run(
    workdir: epath.Path, seed: int, config: Mapping[str, Any], experiment: Mapping[str, Any]
) -> dict:
    """The result.json of a run.

    Args:
        workdir: of the run.
        seed: `train.seed` of it.
        config: what it must have been trained with, flat; its seed does not count.
        experiment: what must have been measured: the content of experiment.json.

    Raises:
        Damaged: there is none, or none that can be used.
    """
    if not (workdir / RESULT).exists():
        raise Damaged(_unfinished(workdir, config))
    try:
        path = workdir / 'config.json'
        there = config_lib.flatten(migrate_config(json.loads(path.read_text()), str(path)))
        result = json.loads((workdir / RESULT).read_text())
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f'damaged: {error}') from error
    other = differences(there, config)
    if other:
        raise Damaged(f'of another version of the experiment: {"; ".join(other)}')
    return check_result(result, seed, experiment)


def check_result(result: Any, seed: int, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """A result that has all that was asked for, or Damaged."""
    lacking = [
        key for key in (*FACTS, 'scores') if not isinstance(result, dict) or key not in result
    ]
    if lacking:
        raise Damaged(f'damaged: {RESULT} lacks {", ".join(lacking)}')
    odd = [key for key in BY_METRIC if not isinstance(result.get(key, {}), dict)]
    if odd:
        raise Damaged(f'damaged: {", ".join(odd)} of {RESULT} is no object')
    if result['seed'] != seed:
        raise Damaged(f'damaged: {RESULT} is of seed {result["seed"]}')
    for metric in experiment['metrics']:
        score = result['scores'].get(metric['label'])
        if not is_score(score):
            raise Damaged(f'its {metric["label"]} is {"not measured" if score is None else score}')
    return result


def is_score(value: Any) -> bool:
    """Whether a score is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' of the keys by which two flat configs are not the same run, seeds aside."""
    return [
        line
        for key, line in config_changes(old, new).items()
        if key != 'train.seed' and not may_change(key)
    ]


def folders(experiment: Mapping[str, Any]) -> list[str]:
    """The folders of the variants in their order, each once."""
    return list(dict.fromkeys(variant['folder'] for variant in experiment['variants'].values()))


def _lines(value: Any, depth: int, indent: str = '') -> str:
    """JSON with a line for each value down to `depth`, and for each object of a list."""
    listed = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    if not depth or not value or not (listed or isinstance(value, dict)):
        return json.dumps(value)
    inner = indent + ' '
    if listed:
        items, (left, right) = map(json.dumps, value), '[]'
    else:
        items, (left, right) = (
            [f'{json.dumps(k)}: {_lines(v, depth - 1, inner)}' for k, v in value.items()],
            '{}',
        )
    return left + ','.join(f'\n{inner}{item}' for item in items) + f'\n{indent}{right}'


def _gathered(experiment: dict[str, Any], run_of: Any) -> dict[str, Any]:
    runs, missing = [], []
    for folder in folders(experiment):
        for seed in experiment['seeds']:
            try:
                runs.append({'folder': folder} | run_of(folder, seed))
            except Damaged as why:
                missing.append({'folder': folder, 'seed': seed, 'why': str(why)})
    return {'experiment': experiment, 'runs': runs, 'missing': missing}


def _unfinished(workdir: epath.Path, config: Mapping[str, Any]) -> str:
    """Why a run has no result."""
    if (workdir / FAILURE).exists():
        try:
            return f'failed: {json.loads((workdir / FAILURE).read_text())["error"]}'
        except (OSError, ValueError, KeyError, TypeError):
            return f'failed; {FAILURE} is damaged'
    event = last_event(workdir)
    return (
        f'not finished: at step {event["step"]} of {config["train.steps"]}' if event else 'not run'
    )


def last_event(workdir: epath.Path) -> dict[str, Any]:
    """The last line of training in a run's metrics.jsonl; {} where there is none yet."""
    try:
        *lines, _ = (
            (workdir / 'metrics.jsonl').read_text().split('\n')
        )  # a line that is being written has no end
        events = map(json.loads, reversed(lines))
        return next((event for event in events if event['split'] == 'train'), {})
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _checked(experiment: Any, path: epath.Path) -> dict[str, Any]:
    """Return the content of an experiment.json, in its present form, or raise WorkdirError."""
    try:
        for entry in (*experiment['metrics'], *experiment['published']):
            if 'falling' in entry:  # Its name in version 1.
                entry['lower_is_better'] = entry.pop('falling')
        for variant in experiment['variants'].values():
            variant['config'] = migrate_flat_config(variant['config'])
        labels = [metric['label'] for metric in experiment['metrics']]
        known = [
            variant['folder'] and variant['config'] for variant in experiment['variants'].values()
        ]
        if labels and known and isinstance(experiment['seeds'], list):
            references_of(experiment['variants'], experiment['reference'])
            return experiment
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    raise WorkdirError(
        f'{path} does not describe an experiment: it is damaged, or was not written by ablate'
    )


def _read(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f'{path} cannot be read: {error}') from error
