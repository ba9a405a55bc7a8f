"""The check that every variant of an experiment can be trained and scored by its metrics."""

from transformer_jax import config as config_lib
from transformer_jax.ablation.experiment import Experiment, Metric, impossible_variants
from transformer_jax.data.tasks.base import Task
from transformer_jax.evaluation.metrics import METRICS
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


def _unmeasurable(config: ExperimentConfig, metric: Metric) -> str:
    """Say why a config cannot have a score; '' where it can."""
    components = config_lib.resolve(config)
    task = components.task
    names = task.scores_by_length if metric.length else reported(task)
    longest, average = components.architecture.max_length, config.checkpoint.average
    if metric.name not in names:
        return f'{metric}: data.task={config.data.task!r} is scored by {", ".join(names)}'
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
