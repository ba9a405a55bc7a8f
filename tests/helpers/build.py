"""Models from configuration keys, for tests."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax import models
from transformer_jax.batch import Batch
from transformer_jax.config import Components, resolve, resolve_architecture
from transformer_jax.config.resolve import parse_components
from transformer_jax.schema import ExperimentConfig, ModelConfig


def build_model(model: ModelConfig, vocab_size: int, classes: int = 0) -> nn.Module:
    """Build the linen module that the keys of a model describe, without checks."""
    return models.build_model(resolve_architecture(model, vocab_size, classes))


def with_vocabulary(config: ExperimentConfig, vocab_size: int) -> Components:
    """Resolve an experiment with another vocabulary size, without checks."""
    data = dataclasses.replace(config.data, vocab_size=vocab_size)
    return parse_components(dataclasses.replace(config, data=data))


def build(config: ExperimentConfig) -> nn.Module:
    """Build the linen module of an experiment."""
    return models.build_model(resolve(config).architecture)


def dummy_batch(rows: int = 1, length: int = 1, kind: str = 'encoder_decoder') -> Batch:
    """Make a batch of ones for a kind of model, see `models.dummy_batch`."""
    row = models.MODELS[kind]
    source = jnp.ones((rows, length), jnp.int32) if row.reads_source else None
    target = jnp.ones((rows, 1 if row.predicts_class else length), jnp.int32)
    return Batch(*[source] * 3, *[target] * 4, target.astype(jnp.float32))
