"""The check that every variant, and every try of it, can be trained and scored by its metrics."""

from collections.abc import Mapping
from typing import Any

from transformer_jax import config as config_lib
from transformer_jax.ablation.experiment import Experiment, impossible_variants
from transformer_jax.ablation.metric import Metric
from transformer_jax.ablation.tune import Tune, say_values
from transformer_jax.config import Components
from transformer_jax.data.tasks.base import Task
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.inference.gradient_norms import lacks_part
from transformer_jax.inference.probes import cannot_probe
from transformer_jax.models import no_decoding
from transformer_jax.schema import ExperimentConfig, evaluates


def reported(task: Task) -> tuple[str, ...]:
    """List the metrics of a task that are measured without `evaluate --lengths`."""
    return *task.scores, *(name for name, metric in METRICS.items() if metric.timed)


def checked_configs(experiment: Experiment) -> dict[str, ExperimentConfig]:
    """Return every variant as a configuration that can be trained and scored.

    Raises:
        ConfigError: some variants cannot; all of them are listed.
    """
    configs = experiment.configs()
    reasons = [
        f'{name}: train.num_seeds={config.train.num_seeds}: the seeds are those of ablate, and '
        '--seeds_per_program says how many share a program'
        for name, config in configs.items()
        if config.train.num_seeds != 1
    ]
    reasons += [
        f'{name}: {why}'
        for name, config in configs.items()
        for metric in experiment.metrics
        if (why := _unmeasurable(config, metric))
    ]
    if reasons:
        raise impossible_variants(reasons)
    return configs


def check_tries(
    tune: Tune, configs: Mapping[str, ExperimentConfig], overrides: Mapping[str, Any]
) -> None:
    """Raise ConfigError for tries that cannot be trained, or scored.

    Args:
        tune: what is tried.
        configs: variant -> its configuration, without what is tuned.
        overrides: keys of the base that the command line sets.
    """
    if fixed := [key for key in tune.values if key in overrides]:
        raise ConfigError(f'--config.{fixed[0]}: tune chooses it for every variant: leave it out')
    reasons: dict[str, list[str]] = {}
    for variant, config in configs.items():
        for why in _refusals(tune, config):
            reasons.setdefault(why, []).append(variant)
    if reasons:
        said = [
            why if len(names) == len(configs) else f'{", ".join(names)}: {why}'
            for why, names in reasons.items()
        ]
        lines = said if len(said) == 1 else ['values that cannot be tried:', *said]
        raise ConfigError('tune: ' + '\n  '.join(lines))


def _refusals(tune: Tune, config: ExperimentConfig) -> dict[str, None]:
    """Say why tries of a variant cannot be, each reason once."""
    tried: dict[ExperimentConfig, str] = {}
    reasons = {}
    if why := _unmeasurable(config, tune.metric):
        return {why: None}
    for values in tune.combinations:
        try:
            made = config_lib.override(config, values)
        except ConfigError as error:
            reasons[str(error).replace('\n', ' ')] = None
            continue
        if why := _unmeasurable(made, tune.metric):
            reasons[why] = None
        said = say_values(values)
        if made in tried:
            reasons[f'{said} is the same as {tried[made]}: leave one of them out'] = None
        tried[made] = said
    return reasons


def _unmeasurable(config: ExperimentConfig, metric: Metric) -> str:
    """Say why a config cannot have a score; '' where it can."""
    components = config_lib.resolve(config)
    longest, average = components.architecture.max_length, config.checkpoint.average
    if why := _unknown(components, metric):
        return f'{metric}: {why}'
    if metric.length > longest:
        return (
            f'{metric}: model.position={config.model.position!r} and its attention read {longest} '
            'tokens at most'
        )
    if metric.checkpoint == 'best' and not evaluates(config):
        return f'{metric}: evaluate.every=0 finds no best checkpoint'
    if metric.checkpoint.startswith('avg:') and int(metric.checkpoint[4:]) > average:
        return f'{metric}: checkpoint.average={average} keeps too few for {metric.checkpoint}'
    return ''


def _unknown(components: Components, metric: Metric) -> str:
    """Say why a metric means nothing for a model and its task; '' where it has a meaning."""
    config, task = components.config, components.task
    if metric.has_parts:
        return lacks_part(components.architecture, metric.part)
    if metric.probed:
        return cannot_probe(components.architecture, config.model, metric.name)
    if metric.decodes:
        return no_decoding(components.architecture)
    names = task.scores_by_length if metric.length else reported(task)
    if metric.name not in names:
        return f'data.task={config.data.task!r} is scored by {", ".join(names)}'
    return ''
