"""An experiment with every spec string resolved: what the rest of the program is built from."""

import dataclasses

from transformer_jax.data.batching import Batching
from transformer_jax.data.pipeline import PipelineConfig
from transformer_jax.data.tasks.base import Task
from transformer_jax.models import MODELS, ModelKind
from transformer_jax.models.architecture import Architecture
from transformer_jax.optim import Optimizer, Schedule
from transformer_jax.partitioning.rules import Rules
from transformer_jax.schema import ExperimentConfig


@dataclasses.dataclass(frozen=True)
class Components:
    """An experiment with every spec string resolved.

    Attributes:
        config: the keys, for numbers such as `train.steps`.
        architecture: what the model is built from.
        task: what the data is read from.
        batching: how examples become rows.
        optimizer: the rule from gradients to the direction of the update.
        schedule: the learning rate over the steps.
        rules: over which mesh axes each logical axis of a parameter is cut.
    """

    config: ExperimentConfig
    architecture: Architecture
    task: Task
    batching: Batching
    optimizer: Optimizer
    schedule: Schedule
    rules: Rules

    @property
    def model_kind(self) -> ModelKind:
        """The row of MODELS for the kind of the model."""
        return MODELS[self.architecture.kind]

    @property
    def pipeline(self) -> PipelineConfig:
        """The settings of the data pipeline."""
        config = self.config
        return PipelineConfig(
            self.task,
            self.batching,
            config.data,
            config.train.batch_tokens,
            config.evaluate.batch_tokens,
            config.train.seed,
            self.architecture.max_length,
            not self.model_kind.reads_source,
            max(self.architecture.prefix_length - 1, 0),
        )
