"""The experiment as frozen dataclasses: every key and its default stand here and nowhere else.

`configs/*.py` start from `default_config()`, a locked ConfigDict made of these classes; `from_config_dict` converts it
back strictly and checks everything that can be known before data is read or anything compiles.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from transformer_jax import spec
from transformer_jax.attention import KINDS, Attention
from transformer_jax.attention.engines import KERNELS, Place, pattern, resolve
from transformer_jax.checks import check
from transformer_jax.errors import ConfigError
from transformer_jax.norms import PLACEMENTS, deepnorm
from transformer_jax.positions import POSITIONS, Position

# The stacks of each model, and where they attend.
SITES = {'encoder_decoder': ('encoder', 'decoder', 'cross'), 'decoder_only': ('decoder',), 'classifier': ('encoder',),
         'rnn_seq2seq': ()}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture; the defaults are the base model of Vaswani et al. (2017), Table 3."""

    kind: str = 'encoder_decoder'
    encoder_layers: int = 6
    decoder_layers: int = 6
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_kv_heads: int = 0  # 0: as many as num_heads
    head_dim: int = 0  # d_k; 0: d_model / num_heads
    value_dim: int = 0  # d_v; 0: as head_dim
    attention: str = 'softmax'  # a spec, or a pattern of layers: '5*softmax(mask=window(64)), softmax', cycled
    encoder_attention: str = ''  # '': as attention
    decoder_attention: str = ''
    cross_attention: str = ''
    attention_bias: str = 'none'  # of the projections: none, qkv, all
    attention_dropout: bool = False  # drops weights too, at model.dropout
    engine: str = 'auto'
    position: str = 'sinusoidal'
    norm: str = 'layer'
    norm_placement: str = 'post'
    block: str = 'sequential'  # or parallel: the sublayers read one norm and are added at once (GPT-J, PaLM)
    ffn: str = 'relu'
    rnn: str = 'lstm'  # of rnn_seq2seq alone: cell and attention, in place of the keys from d_ff to ffn
    tie_embeddings: str = 'all'  # all: source, target, output; decoder: target, output; inputs: source, target; none
    pooling: str = 'mean'  # of a classifier: mean, or first: a token put before the text ([CLS])
    towers: int = 1  # of a classifier: 2 reads two texts, each ended by EOS, apart
    embedding_scale: str = 'sqrt'  # embeddings times √d_model, or none: as they are
    embedding_norm: bool = False  # after embedding and position
    logit_softcap: float = 0.0  # c·tanh(logit / c); 0: none
    dropout: float = 0.1
    dtype: str = 'float32'  # of the computation; parameters are float32

    def heads(self) -> tuple[int, int, int, int]:
        """(N query heads, K key-value heads, d_k, d_v) with the zeros resolved."""
        head_dim = self.head_dim or self.d_model // self.num_heads
        return self.num_heads, self.num_kv_heads or self.num_heads, head_dim, self.value_dim or head_dim

    def residual_scales(self, stack: str) -> tuple[float, float]:
        """(α of the residual path, β of the initial weights beside it) in the 'encoder' or 'decoder'."""
        deep = PLACEMENTS[self.norm_placement].deep
        layers = [getattr(self, f'{name}_layers') * (name in SITES[self.kind]) for name in ('encoder', 'decoder')]
        return deepnorm(stack, *layers) if deep else (1.0, 1.0)

    def attention_at(self, site: str, layer: int) -> Attention:
        """The attention kind of a layer, from 0, at a site: 'encoder', 'decoder' or 'cross'."""
        key = self.attention_key(site)
        pattern = spec.parse_pattern(getattr(self, key), KINDS, f'model.{key}')
        return pattern[layer % len(pattern)]

    def attention_key(self, site: str) -> str:
        """The key that says which attention a site has."""
        return f'{site}_attention' if getattr(self, f'{site}_attention') else 'attention'

    def sites(self) -> list[tuple[str, int]]:
        """(site, layer) of every attention in the model."""
        layers = {'encoder': self.encoder_layers, 'decoder': self.decoder_layers, 'cross': self.decoder_layers}
        return [(site, layer) for site in SITES[self.kind] for layer in range(layers[site])]

    def longest(self) -> float:
        """The most tokens that attention and positions can take in; math.inf where nothing bounds them."""
        limits = [self.attention_at(site, layer).max_len for site, layer in self.sites()]
        if limits:
            limits.append(self.position_at('decoder').max_len)
        return min(filter(None, limits), default=math.inf)

    def position_at(self, site: str) -> Position:
        """The position encoding of a site; cross-attention has none."""
        return Position() if site == 'cross' else spec.parse(self.position, POSITIONS, 'model.position')

    def place_at(self, site: str) -> Place:
        """What the engine of a site must suit."""
        return Place(site, self.heads(), self.dtype, self.attention_dropout)

    def engine_at(self, site: str, layer: int) -> str:
        """The engine of a layer's attention at a site: `engine`, or what 'auto' is there on this machine."""
        return resolve(self.engine, self.attention_at(site, layer), self.position_at(site), self.place_at(site))

    def engines(self) -> dict[str, str]:
        """Site to the engines of its layers: {'encoder': 'dense', 'decoder': '5*blocked, dense', …}."""
        names: dict[str, list[str]] = {}
        for site, layer in self.sites():
            names.setdefault(site, []).append(self.engine_at(site, layer))
        return {site: pattern(engines) for site, engines in names.items()}


@dataclasses.dataclass(frozen=True)
class TracedConfig(ModelConfig):
    """A model to trace, not to run: chunked where a kernel would be, which makes the same products.

    What happens inside a kernel no trace shows, and without the accelerator that has it not even a trace can be made.
    """

    def engine_at(self, site: str, layer: int) -> str:
        engine = super().engine_at(site, layer)
        return 'chunked' if engine in KERNELS else engine


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches."""

    task: str = 'number_words'
    source: str = 'en'
    target: str = 'de'
    source_dir: str = ''  # '': the task's public source
    cache_dir: str = ''  # '': ~/.cache/transformer_jax
    tokenizer: str = 'bpe'  # bpe (joint), characters or bytes; generated tasks have symbols of their own
    vocab_size: int = 8000  # special tokens included
    batching: str = 'buckets(lengths=(16, 32, 64, 128))'
    prefetch: int = 2  # batches prepared ahead by a thread; 0: none
    limit: int = 0  # train on the first so many examples; 0: all


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    seed: int = 0
    replicas: int = 1  # seeds trained side by side in one program, each from `seed` on
    batch_tokens: int = 25_000  # target tokens per step on all devices together, padding included
    accumulate: int = 1  # microbatches per step
    label_smoothing: float = 0.1
    log_every: int = 100
    ema: float = 0.0  # a moving average of the parameters with this decay, which evaluation uses; 0: none
    on_nonfinite: str = 'stop'  # stop: exit code 4; skip: keep the old state, count and go on


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The update; `learning_rate` is the schedule's peak (for `paper` a factor on the paper's formula)."""

    optimizer: str = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    schedule: str = 'paper(warmup=4000)'
    learning_rate: float = 1.0
    weight_decay: float = 0.0  # of kernels; never of norms and biases
    decay_embeddings: bool = True  # of tables of tokens and places too
    clip: float = 0.0  # global norm; 0: off


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation during training, on the validation split."""

    every: int = 0  # steps; 0: never
    every_epochs: int = 0  # beside it
    best_metric: str = 'loss'
    patience: int = 0  # stop after so many evaluations without a new best; 0: never
    max_examples: int = 0  # translated for BLEU; 0: all
    stride: int = 0  # tokens between windows of contiguous text, each with the context that fits; 0: no overlap
    bleu_tokenize: str = '13a'  # sacreBLEU's tokenizer; none: the text is tokenised already
    batch_tokens: int = 8192


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept."""

    every: int = 1000  # steps; 0: only at the end
    every_epochs: int = 0  # beside it
    keep: int = 3  # newest checkpoints kept, the best one beside them
    average: int = 5  # `--checkpoint=avg:N` must be possible up to this N


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Generation; the defaults are those of Vaswani et al. (2017), section 6.1."""

    method: str = 'beam'
    beam: int = 4
    length_penalty: float = 0.6
    max_len: int = 50  # beyond the source's length
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one of them may be -1: the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How the step is laid out over devices."""

    mode: str = 'jit'
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that determines a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    decode: DecodeConfig = DecodeConfig()
    parallel: ParallelConfig = ParallelConfig()


def default_config() -> ml_collections.ConfigDict:
    """All keys with their defaults, locked: what a file in `configs/` starts from."""
    return ml_collections.ConfigDict(dataclasses.asdict(ExperimentConfig())).lock()


def from_config_dict(config: ml_collections.ConfigDict) -> ExperimentConfig:
    """Converts strictly and checks.

    Raises:
        ConfigError: a missing, unknown or wrongly typed key, a value out of range, or an impossible combination.
    """
    return from_dict(config.to_dict())


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """`from_config_dict` for a plain dictionary, as `config.json` holds it."""
    config = _convert(values, ExperimentConfig, '')
    check(config, flatten(config))
    return config


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The nested dictionary that `from_dict` reads back as `config`."""
    return dataclasses.asdict(config)


def replace(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    """`config` with whole sections replaced, checked again."""
    changed = dataclasses.replace(config, **sections)
    check(changed, flatten(changed))
    return changed


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
    """{'train.steps': 100, …} of a config or of its dictionary."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _convert(values: Mapping[str, Any], cls: type, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f'{prefix[:-1]}={values!r} is no section: it holds the keys of {cls.__name__}')
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f'{prefix}{key}: unknown configuration key; {spec.nearest(key, fields)}')
    missing = [prefix + key for key in fields if key not in values]
    if missing:
        raise ConfigError(f'missing configuration key {", ".join(missing)}; start from transformer_jax.config.'
                          'default_config(), which holds every key')
    converted = {}
    for key, hint in fields.items():
        if dataclasses.is_dataclass(hint):
            converted[key] = _convert(values[key], hint, f'{prefix}{key}.')
            continue
        converted[key] = spec.convert(values[key], hint)
        if converted[key] is None:
            raise ConfigError(f'{prefix}{key}={values[key]!r} is of type {type(values[key]).__name__}, '
                              f'it takes {spec.type_name(hint)}')
    return cls(**converted)
