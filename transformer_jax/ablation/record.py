"""The content of experiment.json: what was planned, in the words of its readers."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.choices import holds_tuning, tune_changes
from transformer_jax.ablation.experiment import Experiment
from transformer_jax.ablation.match_sizes import Matched
from transformer_jax.ablation.results import differences
from transformer_jax.ablation.settings import Setting
from transformer_jax.errors import ConfigError
from transformer_jax.storage.json_text import to_json


def make_record(
    experiment: Experiment,
    file: str,
    overrides: Mapping[str, Any],
    settings: Sequence[Setting],
    matched: Mapping[str, Matched],
    **stages: Any,
) -> dict[str, Any]:
    """Return the content of experiment.json.

    Args:
        experiment: what is planned, with `overrides` in its base.
        file: where it came from.
        overrides: keys of its base that were replaced.
        settings: its distinct configs, with their folders.
        matched: variant -> its config at the size of its reference.
        stages: what grows with the runs: seeds, claims, looks, pilot.
    """
    folders = {name: setting.folder for setting in settings for name in setting.variants}

    def variant(name: str, matched: Matched) -> dict[str, Any]:
        config = config_lib.flatten(matched.config)
        del config['train.seed']
        chosen = matched.chosen | {'residual': matched.residual} if matched.chosen else {}
        return {
            'folder': folders[name],
            'overrides': dict(experiment.variants[name]),
            'config': config,
            'matched': chosen,
        }

    record = {
        'file': file,
        'overrides': overrides,
        'claim': experiment.claim,
        'reference': experiment.compared_with,
        'metrics': [
            dataclasses.asdict(metric)
            | {'lower_is_better': metric.lower_is_better, 'label': str(metric)}
            for metric in experiment.metrics
        ],
        'published': [dataclasses.asdict(published) for published in experiment.published],
        'axis': experiment.axis and dataclasses.asdict(experiment.axis),
        'match': experiment.match,
        'differences': [dataclasses.asdict(each) for each in experiment.differences],
        'tune': experiment.tuning and experiment.tuning.as_json(),
        'variants': {name: variant(name, matched) for name, matched in matched.items()},
        **stages,
    }
    return json.loads(to_json(record))  # as it will be read: tuples are lists


def refuse_other_version(root: epath.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError if a variant has another config than before, or is tuned otherwise.

    Only variants, seeds and metrics may be added and removed.

    Args:
        root: of the ablation.
        before: the content of experiment.json; without variants where there was none.
        now: what it is to be.
    """
    old, new = before['variants'], now['variants']
    changes = tune_changes(before.get('tune'), now['tune']) if old else []
    if changes and holds_tuning(root):
        raise ConfigError(
            f'{root} was begun with another tune; take another --root, or the old one: '
            f'{"; ".join(changes)}'
        )
    reasons, tuned = [], now['tune']['values'] if now['tune'] else ()
    for name in old.keys() & new.keys():
        changed = differences(old[name]['config'], new[name]['config'], tuned)
        if changed:
            reasons.append(f'{name}: {"; ".join(changed)}')
    if reasons:
        title = (
            f'{root} holds results of another version of the experiment; take another --root, the '
            'old values, or other names for the variants:'
        )
        raise ConfigError('\n  '.join([title, *sorted(reasons)]))
