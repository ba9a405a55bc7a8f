"""The keys of an experiment as frozen dataclasses: every key and its default stand here and
nowhere else.

`configs/*.py` start from `config.default_config()`, a locked ConfigDict made of these classes;
`config.from_config_dict` converts it back strictly, and `config.resolve` turns the strings in it
into what they name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


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
    attention: str = (
        'softmax'  # a spec, or a pattern of layers: '5*softmax(mask=window(64)), softmax', cycled
    )
    encoder_attention: str = ''  # '': as attention
    decoder_attention: str = ''
    cross_attention: str = ''
    attention_bias: str = 'none'  # of the projections: none, qkv, all
    attention_dropout: bool = False  # drops weights too, at model.dropout
    engine: str = 'auto'
    position: str = 'sinusoidal'
    norm: str = 'layer'
    norm_placement: str = 'post'
    block: str = (
        'sequential'  # or parallel: the sublayers read one norm and are added at once (GPT-J, PaLM)
    )
    ffn: str = 'relu'
    rnn: str = (
        'lstm'  # of rnn_seq2seq alone: cell and attention, in place of the keys from d_ff to ffn
    )
    tie_embeddings: str = (
        'all'  # all: source, target, output; decoder: target, output; inputs: source, target; none
    )
    pooling: str = 'mean'  # of a classifier: mean, or first: a token put before the text ([CLS])
    towers: int = 1  # of a classifier: 2 reads two texts, each ended by EOS, apart
    embedding_scale: str = 'sqrt'  # embeddings times √d_model, or none: as they are
    embedding_norm: bool = False  # after embedding and position
    logit_softcap: float = 0.0  # c·tanh(logit / c); 0: none
    dropout: float = 0.1
    dtype: str = 'float32'  # of the computation; parameters are float32


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches."""

    task: str = 'number_words'
    source: str = 'en'
    target: str = 'de'
    source_dir: str = ''  # '': the task's public source
    cache_dir: str = ''  # '': ~/.cache/transformer_jax
    tokenizer: str = (
        'bpe'  # bpe (joint), characters or bytes; generated tasks have symbols of their own
    )
    vocab_size: int = 8000  # special tokens included
    batching: str = 'buckets(lengths=(16, 32, 64, 128))'
    prefetch: int = 2  # batches prepared ahead by a thread; 0: none
    max_train_examples: int = 0  # train on the first so many examples; 0: all


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    seed: int = 0
    num_seeds: int = 1  # seeds trained side by side in one program, counted up from `seed`
    batch_tokens: int = 25_000  # target tokens per step on all devices together, padding included
    accumulate: int = 1  # microbatches per step
    label_smoothing: float = 0.1
    log_every: int = 100
    ema: float = (
        0.0  # a moving average of the parameters with this decay, which evaluation uses; 0: none
    )
    on_nonfinite: str = 'stop'  # stop: exit code 4; skip: keep the old state, count and go on


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The update; `learning_rate` is the schedule's peak (for `paper` a factor on the
    paper's formula).
    """

    optimizer: str = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    schedule: str = 'noam(warmup=4000)'
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
    # tokens between windows of contiguous text, each with the context that fits; 0: no overlap
    stride: int = 0
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
    max_extra_tokens: int = 50  # output tokens beyond the length of the source
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


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
    """{'train.steps': 100, …} of a config or of its dictionary."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in values.items():
        flat |= (
            flatten(value, f'{prefix}{key}.')
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return flat
