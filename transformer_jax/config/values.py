"""The choices and ranges of single configuration values."""

import dataclasses
from typing import Any

from transformer_jax import spec
from transformer_jax.attention.engines import ENGINES
from transformer_jax.errors import ConfigError
from transformer_jax.layers.embedding import TIES
from transformer_jax.layers.norms import PLACEMENTS
from transformer_jax.models import MODELS
from transformer_jax.models.layer_stack import REMATS
from transformer_jax.ranges import Range
from transformer_jax.schema import ExperimentConfig, ParallelConfig, flatten

# The metrics of validation that can say which checkpoint is the best, see evaluation.metrics.
BEST_METRICS = ('loss', 'perplexity', 'accuracy', 'bleu', 'chrf', 'exact_match')
CHOICES = {
    'model.kind': tuple(MODELS),
    'model.pooling': ('mean', 'first'),
    'model.norm_placement': tuple(PLACEMENTS),
    'model.block': ('sequential', 'parallel'),
    'model.embedding_scale': ('sqrt', 'none'),
    'model.attention_bias': ('none', 'qkv', 'all'),
    'model.engine': ('auto', *ENGINES),
    'model.tie_embeddings': tuple(TIES),
    'model.remat': tuple(REMATS),
    'model.dtype': ('float32', 'bfloat16', 'float16'),
    'data.tokenizer': ('bpe', 'characters', 'bytes'),
    'train.on_nonfinite': ('stop', 'skip'),
    'evaluate.best_metric': BEST_METRICS,
    'evaluate.bleu_tokenize': ('13a', 'none', 'intl', 'char', 'zh'),
    'decode.method': ('beam', 'greedy', 'sample'),
    'parallel.mode': ('jit', 'pmap'),
}


def _ranges(section: Any, prefix: str = '') -> dict[str, Range]:
    """Map each key of a section that is a number to its range."""
    ranges = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            ranges |= _ranges(field.default, f'{prefix}{field.name}.')
        elif 'range' in field.metadata:
            ranges[prefix + field.name] = field.metadata['range']
    return ranges


RANGES = _ranges(ExperimentConfig)


def check_values(config: ExperimentConfig) -> None:
    """Check every value by itself: choices and ranges.

    Raises:
        ConfigError: a value that is no choice, or outside its range; names the key.
    """
    values = flatten(config)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(f'{key}={values[key]!r}: {spec.nearest(str(values[key]), choices)}')
    for key, interval in RANGES.items():
        if why := interval.reject(key, values[key]):
            raise ConfigError(why)
    _check_mesh(config.parallel)


def _check_mesh(parallel: ParallelConfig) -> None:
    mesh = parallel.mesh
    sizes = dataclasses.asdict(mesh)
    if list(sizes.values()).count(-1) > 1:
        raise ConfigError(f'parallel.mesh={sizes}: at most one size may be -1 (the rest)')
    if parallel.mode == 'pmap' and (mesh.fsdp, mesh.tensor, mesh.context) != (1, 1, 1):
        raise ConfigError(
            "parallel.mode='pmap' is data parallel only: set parallel.mesh.fsdp=1, "
            "parallel.mesh.tensor=1 and parallel.mesh.context=1, or parallel.mode='jit'"
        )
    if parallel.mode == 'pmap' and parallel.rules:
        raise ConfigError(
            f"parallel.rules={parallel.rules!r}: parallel.mode='pmap' keeps parameters whole on "
            "every device: set parallel.rules='', or parallel.mode='jit'"
        )
