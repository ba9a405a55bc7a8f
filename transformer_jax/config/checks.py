"""What an experiment must satisfy before anything is read or compiled: choices, ranges,
combinations.
"""

import dataclasses

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.attention.engines import ENGINES, site_incompatibility
from transformer_jax.config.components import Components
from transformer_jax.data.batching import Buckets, Packed
from transformer_jax.errors import ConfigError
from transformer_jax.layers.embedding import TIES
from transformer_jax.layers.norms import PLACEMENTS
from transformer_jax.models import MODELS
from transformer_jax.schema import ExperimentConfig, ModelConfig, flatten

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
    'evaluate.best_metric': ('loss', 'perplexity', 'accuracy', 'bleu', 'chrf', 'exact_match'),
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
    """Checks every value by itself: choices and ranges.

    Raises:
        ConfigError: a value that is no choice or outside its range; names the key.
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
        if (
            type(value) is int
            and value < (key in POSITIVE)
            and not key.startswith('parallel.mesh.')
        ):
            raise ConfigError(
                f'{key}={value} must be {"positive" if key in POSITIVE else "0 or more"}'
            )


def check_combinations(components: Components) -> None:
    """Checks that the parts of an experiment can work together.

    Raises:
        ConfigError: a combination that cannot run; names the keys and what would work.
    """
    config = components.config
    _check_model(components)
    _check_task(components)
    _check_rows(components)
    sizes = dataclasses.asdict(config.parallel.mesh)
    if (
        any(size != -1 and size < 1 for size in sizes.values())
        or list(sizes.values()).count(-1) > 1
    ):
        raise ConfigError(
            f'parallel.mesh={sizes}: sizes are positive, and at most one may be -1 (the rest)'
        )
    if config.parallel.mode == 'pmap' and (
        config.parallel.mesh.fsdp,
        config.parallel.mesh.tensor,
    ) != (1, 1):
        raise ConfigError(
            "parallel.mode='pmap' is data parallel only: set parallel.mesh.fsdp=1 and "
            "parallel.mesh.tensor=1, or parallel.mode='jit'"
        )
    if config.train.num_seeds > 1:
        _check_replicas(components)


def _check_replicas(components: Components) -> None:
    """Runs side by side need batches of one shape, and a program for the devices of which one is
    for them all.
    """
    config, batching = components.config, components.batching
    replicas = f'train.num_seeds={config.train.num_seeds}'
    if isinstance(batching, Buckets) and len(batching.lengths) > 1:
        longest = batching.lengths[-1]
        raise ConfigError(
            f'{replicas} needs batches of one shape, but data.batching={config.data.batching!r} has '
            f"{len(batching.lengths)}: set data.batching='packed(length={longest})' or "
            f"'buckets(lengths=({longest},))'"
        )
    if config.parallel.mode == 'pmap':
        raise ConfigError(
            f"{replicas} cannot work with parallel.mode='pmap': set parallel.mode='jit'"
        )
    last = config.train.seed + config.train.num_seeds
    if last > RANGES['train.seed'][1]:
        raise ConfigError(
            f'{replicas} counts train.seed={config.train.seed} up beyond {RANGES["train.seed"][1] - 1}'
        )


def _check_task(components: Components) -> None:
    """The model must be of a kind that the task's form suits; a generated task's vocabulary and
    lengths are known.
    """
    config, task, model_kind = components.config, components.task, components.model_kind
    if task.form not in model_kind.learns:
        able = [name for name, row in MODELS.items() if task.form in row.learns]
        raise ConfigError(
            f'model.kind={config.model.kind!r} cannot learn data.task={config.data.task!r}, its form is '
            f'{task.form}: set model.kind to {" or ".join(able)}'
        )
    if model_kind.predicts_class and isinstance(components.batching, Packed):
        raise ConfigError(
            f'data.batching={config.data.batching!r}: a class belongs to a row of one text; set '
            "data.batching='buckets(…)'"
        )
    if (
        not model_kind.reads_source
        and components.architecture.prefix_length > 1
        and task.has_source
    ):
        raise ConfigError(
            f'model.attention={config.model.attention!r}: a prefix of fixed length suits no sources of '
            'different lengths; take it out of the mask'
        )
    symbols = task.symbols()
    if not symbols:
        return  # what the text needs is known when it is read
    size = 4 + len(symbols)
    if config.data.vocab_size != size:
        raise ConfigError(
            f'data.vocab_size={config.data.vocab_size}, but data.task={config.data.task!r} has {size} '
            f'symbols, the special tokens included: set data.vocab_size={size}'
        )
    source, target = (
        max(sides) for sides in zip(*map(task.longest, ('train', 'validation')), strict=True)
    )
    needed = max(source, target) if model_kind.reads_source else source + target
    longest = components.batching.row_lengths()[-1]
    if longest < needed:
        raise ConfigError(
            f'data.batching={config.data.batching!r} has rows of {longest} tokens at most, but examples '
            f'of data.task={config.data.task!r} have up to {needed}'
        )


def _check_rows(components: Components) -> None:
    """Positions and attention must reach as far as the longest row and the longest output, and bear
    packed rows.
    """
    config, architecture, model_kind = (
        components.config,
        components.architecture,
        components.model_kind,
    )
    if not architecture.sites:
        return  # a recurrent model, which no length bounds
    longest = components.batching.row_lengths()[-1] + (
        model_kind.predicts_class and architecture.pooling == 'first'
    )
    more = 0 if model_kind.predicts_class else config.decode.max_extra_tokens
    limits = [
        ('model.position', config.model.position, architecture.position.max_len, longest + more)
    ]
    for site, layer in architecture.sites:
        kind, key = (
            architecture.attention_at(site, layer).kind,
            f'model.{attention_key(config.model, site)}',
        )
        limits.append(
            (key, spec.text(kind, KINDS), kind.max_len, longest + more * (site == 'decoder'))
        )
        if isinstance(components.batching, Packed) and 'segments' not in kind.supports():
            raise ConfigError(
                f'{key}={spec.text(kind, KINDS)!r} cannot keep the sentences of a packed row apart '
                f"({site} layers): set data.batching='buckets(…)'; kinds that can: {_able('segments')}"
            )
    for key, text, limit, needed in limits:
        if limit and needed > limit:
            raise ConfigError(
                f'{key}={text!r} ends before the text, at {limit} tokens: rows of data.batching have {longest} tokens '
                f'and decode.max_extra_tokens={more} more may follow; it must reach to {needed}'
            )


def _check_model(components: Components) -> None:
    model = components.config.model
    if not components.architecture.sites:
        return  # a recurrent model, which has no heads
    if not model.head_dim and model.d_model % model.num_heads:
        fits = [n for n in range(1, 2 * model.num_heads) if model.d_model % n == 0]
        best = min(fits, key=lambda n: abs(n - model.num_heads))
        raise ConfigError(
            f'model.d_model={model.d_model} is not divisible by model.num_heads={model.num_heads}; '
            f'set model.head_dim, or for example model.num_heads={best}'
        )
    if model.num_heads % (model.num_kv_heads or model.num_heads):
        raise ConfigError(
            f'model.num_heads={model.num_heads} is not divisible by '
            f'model.num_kv_heads={model.num_kv_heads}'
        )
    if model.block == 'parallel' and model.norm_placement != 'pre':
        raise ConfigError(
            f"model.block='parallel' cannot work with model.norm_placement={model.norm_placement!r}: its "
            "sublayers share one norm of their input; set model.norm_placement='pre'"
        )
    for site, layer in components.architecture.sites:
        _check_attention(components, site, layer)


# What a site needs of its kind, and how a message says that a kind cannot.
NEEDS = {
    'encoder': {'encoder': 'see both ways'},
    'decoder': {'causal': 'be causal', 'decode': 'decode step by step'},
    'cross': {'cross': 'attend to another sequence'},
}


def _check_attention(components: Components, site: str, layer: int) -> None:
    model, key = components.config.model, f'model.{attention_key(components.config.model, site)}'
    attention = components.architecture.attention_at(site, layer)
    kind, position, text = attention.kind, attention.position, spec.text(attention.kind, KINDS)
    # A language model reads its prompt at once: there a prefix may be seen before its turn.
    prefixed = not components.model_kind.reads_source and kind.mask.prefix_length() > 1
    for promise, what in NEEDS[site].items():
        if promise not in kind.supports() and not prefixed:
            own = '' if key.endswith(f'{site}_attention') else f'; set model.{site}_attention'
            raise ConfigError(
                f'{key}={text!r} cannot {what} ({site} layers{own}); kinds that can: {_able(promise)}'
            )
    if model.attention_dropout and not kind.supports_dropout:
        raise ConfigError(
            f'{key}={text!r} has no weights to drop ({site} layers): set model.attention_dropout=False'
        )
    why = position.incompatibility(model.d_model, kind.rotated_dim(components.architecture.heads))
    if why:
        raise ConfigError(f'{why}: model.position={model.position!r} works on pairs of dimensions')
    why = kind.incompatibility(position, model.engine) or site_incompatibility(
        model.engine, kind, components.architecture.site_spec(site)
    )
    if why:
        alone = kind.incompatibility(position, 'auto')  # whatever the engine
        other = f'model.position={model.position!r}' if alone else f'model.engine={model.engine!r}'
        raise ConfigError(f'{key}={text!r} cannot work with {other} ({site} layers): {why}')


def attention_key(model: ModelConfig, site: str) -> str:
    """The key that says which attention a site has."""
    return f'{site}_attention' if getattr(model, f'{site}_attention') else 'attention'


def _able(promise: str) -> str:
    return ', '.join(sorted(name for name, cls in KINDS.items() if promise in cls().supports()))
