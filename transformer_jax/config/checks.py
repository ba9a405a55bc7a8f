"""What the parts of an experiment must satisfy together before anything is read or compiled."""

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.attention.engines import site_incompatibility
from transformer_jax.batch import EOS
from transformer_jax.config.components import Components
from transformer_jax.config.values import BEST_METRICS, RANGES
from transformer_jax.data.batching import Buckets, Packed
from transformer_jax.errors import ConfigError
from transformer_jax.models import MODELS
from transformer_jax.schema import ModelConfig, evaluates

SPECIAL_TOKENS = 4  # padding, BOS, EOS and unknown, in every vocabulary


def check_combinations(components: Components) -> None:
    """Check that the parts of an experiment can work together.

    Raises:
        ConfigError: a combination that cannot run; names the keys and what would work.
    """
    if components.architecture.sites:  # A recurrent model has none: no heads, no length limits.
        _check_model(components)
    _check_task(components)
    _check_vocabulary(components)
    _check_evaluation(components)
    _check_stride(components)
    if components.architecture.sites:
        _check_rows(components)
    if components.config.train.num_seeds > 1:
        _check_seeds(components)


def _check_seeds(components: Components) -> None:
    """Seeds that train side by side need batches of one shape, and the program of jit."""
    config, batching = components.config, components.batching
    seeds = f'train.num_seeds={config.train.num_seeds}'
    if isinstance(batching, Buckets) and len(batching.lengths) > 1:
        longest = batching.lengths[-1]
        raise ConfigError(
            f'{seeds} needs batches of one shape, but data.batching={config.data.batching!r} has '
            f"{len(batching.lengths)}: set data.batching='packed(length={longest})' or "
            f"'buckets(lengths=({longest},))'"
        )
    if config.parallel.mode == 'pmap':
        raise ConfigError(f"{seeds} cannot work with parallel.mode='pmap': set parallel.mode='jit'")
    last = config.train.seed + config.train.num_seeds - 1
    if why := RANGES['train.seed'].reject('train.seed', last):
        raise ConfigError(f'{seeds} counts train.seed={config.train.seed} up: {why}')


def _check_task(components: Components) -> None:
    """The model must be able to learn the task, and the batching must suit both."""
    config, task, model_kind = components.config, components.task, components.model_kind
    if task.form not in model_kind.learns:
        able = ' or '.join(name for name, row in MODELS.items() if task.form in row.learns)
        raise ConfigError(
            f'model.kind={config.model.kind!r} cannot learn data.task={config.data.task!r}, its '
            f'form is {task.form}: set model.kind to {able}'
        )
    if model_kind.predicts_class and config.model.towers != task.source_texts:
        raise ConfigError(
            f'model.towers={config.model.towers}, but a source of data.task={config.data.task!r} '
            f'is {task.source_texts} text: set model.towers={task.source_texts}'
        )
    if model_kind.predicts_class and isinstance(components.batching, Packed):
        raise ConfigError(
            f'data.batching={config.data.batching!r}: a class belongs to a row of one text; set '
            "data.batching='buckets(…)'"
        )
    reads_prefix = components.architecture.prefix_length > 1
    if not model_kind.reads_source and reads_prefix and task.has_source:
        raise ConfigError(
            f'model.attention={config.model.attention!r}: a prefix of fixed length suits no '
            'sources of different lengths; take it out of the mask'
        )


def _check_stride(components: Components) -> None:
    """Windows of contiguous text must leave no gap between one and the next."""
    stride, longest = components.config.evaluate.stride, components.batching.row_lengths()[-1]
    if stride > longest:
        raise ConfigError(
            f'evaluate.stride={stride} would leave gaps between windows of '
            f'data.batching={components.config.data.batching!r}: it is at most {longest}'
        )


def _check_vocabulary(components: Components) -> None:
    """The vocabulary and the rows must hold a task whose symbols and lengths are known."""
    config, task = components.config, components.task
    symbols = task.symbols()
    if not symbols:
        return  # The vocabulary of a text is known only when it is read.
    size = SPECIAL_TOKENS + len(symbols)
    if config.data.vocab_size != size:
        raise ConfigError(
            f'data.vocab_size={config.data.vocab_size}, but data.task={config.data.task!r} has '
            f'{size} symbols, the special tokens included: set data.vocab_size={size}'
        )
    bounds = [task.longest(split) for split in ('train', 'validation')]
    source, target = (max(sides) for sides in zip(*bounds, strict=True))
    needed = max(source, target) if components.model_kind.reads_source else source + target
    longest = components.batching.row_lengths()[-1]
    if longest < needed:
        raise ConfigError(
            f'data.batching={config.data.batching!r} has rows of {longest} tokens at most, but '
            f'examples of data.task={config.data.task!r} have up to {needed}'
        )


def _check_rows(components: Components) -> None:
    """Positions and attention must reach to the end of the longest row and output."""
    config, architecture, model_kind = (
        components.config,
        components.architecture,
        components.model_kind,
    )
    longest = components.batching.row_lengths()[-1]
    extra, prompt = config.decode.max_extra_tokens, _longest_prompt(components)
    if model_kind.predicts_class:
        extra = 0
        longest += architecture.pooling == 'first'  # A token is put before the text.
    position = config.model.position
    decoded = max(longest, 2 * prompt + extra) if prompt else longest + extra
    limits = [('model.position', position, architecture.position.max_len, decoded)]
    for site, layer in architecture.sites:
        kind, key = architecture.attention_at(site, layer).kind, attention_key(config.model, site)
        text, needed = spec.text(kind, KINDS), decoded if site == 'decoder' else longest
        limits.append((key, text, kind.max_len, needed))
        if isinstance(components.batching, Packed) and 'segments' not in kind.supports():
            raise ConfigError(
                f'{key}={text!r} cannot keep the sentences of a packed row apart ({site} layers): '
                f"set data.batching='buckets(…)'; kinds that can: {_kinds_that_can('segments')}"
            )
    for key, text, limit, needed in limits:
        if limit and needed > limit:
            before = f'rows of data.batching have {longest} tokens'
            if prompt:
                before += f', a prompt up to {prompt} and its answer as many'
            raise ConfigError(
                f'{key}={text!r} ends before the text, at {limit} tokens: {before} and '
                f'decode.max_extra_tokens={extra} more may follow; it must reach to {needed}'
            )


def _longest_prompt(components: Components) -> int:
    """Return the most tokens of a source that a decoder reads before its answer; 0: none.

    Texts may fill a row; the sources of generated tasks are known.
    """
    if components.model_kind.reads_source or not components.task.translates:
        return 0
    source, _ = components.task.longest('validation')
    return source or components.batching.row_lengths()[-1]


def _check_evaluation(components: Components) -> None:
    """What the first evaluation will need must be there: it may come after hours."""
    config = components.config
    metric, names = config.evaluate.best_metric, components.task.scores
    if evaluates(config) and metric not in names:
        able = ', '.join(name for name in BEST_METRICS if name in names)
        raise ConfigError(
            f'evaluate.best_metric={metric!r}: data.task={config.data.task!r} has no such metric; '
            f'it has {able}'
        )
    most = config.data.vocab_size - EOS
    if config.decode.top_k > most:
        raise ConfigError(
            f'decode.top_k={config.decode.top_k} is more than the {most} tokens that can be '
            'sampled; set it lower, or to 0 for all'
        )


def _check_model(components: Components) -> None:
    """Heads must divide the model's dimension, and every attention layer must suit its site."""
    model = components.config.model
    if not model.head_dim and model.d_model % model.num_heads:
        fits = [n for n in range(1, 2 * model.num_heads) if model.d_model % n == 0]
        best = min(fits, key=lambda n: abs(n - model.num_heads))
        raise ConfigError(
            f'model.d_model={model.d_model} is not divisible by model.num_heads='
            f'{model.num_heads}; set model.head_dim, or for example model.num_heads={best}'
        )
    if model.num_heads % (model.num_kv_heads or model.num_heads):
        raise ConfigError(
            f'model.num_heads={model.num_heads} is not divisible by '
            f'model.num_kv_heads={model.num_kv_heads}'
        )
    if model.block == 'parallel' and model.norm_placement != 'pre':
        raise ConfigError(
            "model.block='parallel' cannot work with model.norm_placement="
            f'{model.norm_placement!r}: its sublayers share one norm of their input; set '
            "model.norm_placement='pre'"
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
    model, key = components.config.model, attention_key(components.config.model, site)
    attention = components.architecture.attention_at(site, layer)
    kind, position, text = attention.kind, attention.position, spec.text(attention.kind, KINDS)
    context = components.config.parallel.mesh.context
    if context > 1 and 'context' not in kind.supports():
        raise ConfigError(
            f'{key}={text!r} ({site} layers) cannot be cut over parallel.mesh.context={context}; '
            f'kinds that can: {_kinds_that_can("context")}'
        )
    prefixed = components.model_kind.reads_prefix(kind)
    for capability, what in NEEDS[site].items():
        if capability not in kind.supports() and not prefixed:
            own = '' if key.endswith(f'{site}_attention') else f'; set model.{site}_attention'
            raise ConfigError(
                f'{key}={text!r} cannot {what} ({site} layers{own}); kinds that can: '
                f'{_kinds_that_can(capability)}'
            )
    if model.attention_dropout and not kind.supports_dropout:
        raise ConfigError(
            f'{key}={text!r} has no weights to drop ({site} layers): set '
            'model.attention_dropout=False'
        )
    why = position.incompatibility(model.d_model, kind.rotated_dim(components.architecture.heads))
    if why:
        raise ConfigError(f'{why}: model.position={model.position!r} works on pairs of dimensions')
    why = kind.incompatibility(position, model.engine) or site_incompatibility(
        model.engine,
        kind,
        components.architecture.site_spec(site, context, components.config.train.num_seeds),
    )
    if why:
        whatever_engine = kind.incompatibility(position, 'auto')
        other = 'position' if whatever_engine else 'engine'
        raise ConfigError(
            f'{key}={text!r} cannot work with model.{other}={getattr(model, other)!r} '
            f'({site} layers): {why}'
        )


def attention_key(model: ModelConfig, site: str) -> str:
    """Return the configuration key that decides the attention of a site."""
    own = f'{site}_attention'
    return f'model.{own}' if getattr(model, own) else 'model.attention'


def _kinds_that_can(capability: str) -> str:
    return ', '.join(sorted(name for name, cls in KINDS.items() if capability in cls().supports()))
