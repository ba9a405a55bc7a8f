"""The choices and ranges of single configuration values."""

import dataclasses

from transformer_jax import spec
from transformer_jax.attention.engines import ENGINES
from transformer_jax.errors import ConfigError
from transformer_jax.layers.embedding import TIES
from transformer_jax.layers.norms import PLACEMENTS
from transformer_jax.models import MODELS
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
    'model.dtype': ('float32', 'bfloat16', 'float16'),
    'data.tokenizer': ('bpe', 'characters', 'bytes'),
    'train.on_nonfinite': ('stop', 'skip'),
    'evaluate.best_metric': BEST_METRICS,
    'evaluate.bleu_tokenize': ('13a', 'none', 'intl', 'char', 'zh'),
    'decode.method': ('beam', 'greedy', 'sample'),
    'parallel.mode': ('jit', 'pmap'),
}
# Half-open: a value must be ≥ the first and < the second number.
RANGES = {
    'model.towers': (1, 3),
    'model.dropout': (0, 1),
    'model.logit_softcap': (0, float('inf')),
    'train.label_smoothing': (0, 1),
    'train.ema': (0, 1),
    'optim.learning_rate': (0, float('inf')),
    'optim.weight_decay': (0, float('inf')),
    'optim.clip': (0, float('inf')),
    'data.vocab_size': (5, 1 << 31),
    'train.seed': (0, 1 << 32),
    'decode.temperature': (0, float('inf')),
    'decode.length_penalty': (0, float('inf')),
}
POSITIVE = (
    'model.d_model',
    'model.d_ff',
    'model.num_heads',
    'train.batch_tokens',
    'train.accumulate',
    'train.num_seeds',
    'train.log_every',
    'evaluate.batch_tokens',
    'decode.beam',
    'model.encoder_layers',
    'model.decoder_layers',
    'checkpoint.keep',
)


def check_values(config: ExperimentConfig) -> None:
    """Check every value by itself: choices and ranges.

    Raises:
        ConfigError: a value that is no choice, or outside its range; names the key.
    """
    values = flatten(config)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(f'{key}={values[key]!r}: {spec.nearest(str(values[key]), choices)}')
    for key, (low, high) in RANGES.items():
        if not low <= values[key] < high:
            raise ConfigError(f'{key}={values[key]} is outside {low} ≤ value < {high}')
    if not 0 < config.decode.top_p <= 1:
        raise ConfigError(f'decode.top_p={config.decode.top_p} is outside 0 < value ≤ 1')
    for key, value in values.items():
        if type(value) is not int or key.startswith('parallel.mesh.'):
            continue
        if value < 0 or (value == 0 and key in POSITIVE):
            least = 'positive' if key in POSITIVE else '0 or more'
            raise ConfigError(f'{key}={value} must be {least}')
    _check_mesh(config.parallel)


def _check_mesh(parallel: ParallelConfig) -> None:
    mesh = parallel.mesh
    sizes = dataclasses.asdict(mesh)
    counts = list(sizes.values())
    if any(size != -1 and size < 1 for size in counts) or counts.count(-1) > 1:
        raise ConfigError(
            f'parallel.mesh={sizes}: sizes are positive, and at most one may be -1 (the rest)'
        )
    if parallel.mode == 'pmap' and (mesh.fsdp != 1 or mesh.tensor != 1):
        raise ConfigError(
            "parallel.mode='pmap' is data parallel only: set parallel.mesh.fsdp=1 and "
            "parallel.mesh.tensor=1, or parallel.mode='jit'"
        )
