"""The keys of an experiment as frozen dataclasses: every key, its default and its meaning.

`configs/*.py` start from `config.default_config()`, a locked ConfigDict made of these classes;
`config.from_config_dict` converts it back strictly, and `config.resolve` turns the strings in it
into what they name. The comment before a key, or behind it, is its entry in the documentation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture; the defaults are the base model of Vaswani et al. (2017), Table 3."""

    # The kind of model: encoder_decoder, decoder_only, classifier, or the recurrent rnn_seq2seq.
    kind: str = 'encoder_decoder'
    # Layers of the encoder; a classifier has only these.
    encoder_layers: int = number(6, low=1, high=1_000)
    # Layers of the decoder; a decoder-only model has only these.
    decoder_layers: int = number(6, low=1, high=1_000)
    # The width D of embeddings and of the residual stream.
    d_model: int = number(512, low=1, high=1_000_000)
    # The hidden width F of feed-forward layers.
    d_ff: int = number(2048, low=1, high=10_000_000)
    # Query heads, N.
    num_heads: int = number(8, low=1, high=10_000)
    # Key-value heads, K; 0: as many as num_heads. Fewer is grouped-query attention, 1 multi-query.
    num_kv_heads: int = number(0, low=0, high=10_000)
    # d_k, the size of queries and keys in a head; 0: d_model / num_heads.
    head_dim: int = number(0, low=0, high=100_000)
    # d_v, the size of values in a head; 0: as head_dim.
    value_dim: int = number(0, low=0, high=100_000)
    # The kind of attention: a spec, or a pattern of layers that is repeated, as in
    # '5*softmax(mask=window(64)), softmax'.
    attention: str = 'softmax'
    # The attention of encoder layers; '': as attention.
    encoder_attention: str = ''
    # The self-attention of decoder layers; '': as attention.
    decoder_attention: str = ''
    # The attention of decoder layers to the encoder; '': as attention.
    cross_attention: str = ''
    # Which projections of attention have a bias: none, qkv (into heads), all (the output too).
    attention_bias: str = 'none'
    # Whether dropout acts on attention weights too, at the rate model.dropout.
    attention_dropout: bool = False
    # How attention is computed: auto takes the best that the machine and the mesh have; dense,
    # chunked, blocked, cudnn, splash; ring and allgather of rows that are cut over devices.
    engine: str = 'auto'
    # The position encoding, a spec.
    position: str = 'sinusoidal'
    # The norm, a spec: layer or rms.
    norm: str = 'layer'
    # Where norms stand: post (the paper), pre, sandwich, deepnorm.
    norm_placement: str = 'post'
    # sequential; or parallel: the sublayers read one norm of the input, and their outputs are added
    # at once (GPT-J, PaLM).
    block: str = 'sequential'
    # The feed-forward layer, a spec: relu, gelu, relu2, swiglu, geglu, moe.
    ffn: str = 'relu'
    # Of rnn_seq2seq alone: the recurrent cell and its attention, a spec; the keys from d_ff to ffn
    # have no meaning there.
    rnn: str = 'lstm'
    # Which tables are one: all (source, target, output), decoder (target, output), inputs (source,
    # target), none.
    tie_embeddings: str = 'all'
    # Of a classifier: mean over the tokens, or first, a token put before the text ([CLS]).
    pooling: str = 'mean'
    # Of a classifier: 2 reads two texts, each ended by EOS, that do not see one another.
    towers: int = number(1, low=1, high=2)
    # sqrt: embeddings times √d_model, as in the paper; none: as they are.
    embedding_scale: str = 'sqrt'
    # Whether there is a norm after the embedding and its position.
    embedding_norm: bool = False
    # Final logits become c·tanh(logit / c); 0: unchanged.
    logit_softcap: float = number(0.0, low=0, high=1e9)
    # The dropout rate.
    dropout: float = number(0.1, low=0, below=1)
    # The type of the computation: float32, bfloat16 or float16. Parameters are float32.
    dtype: str = 'float32'
    # Whether layers of one pattern are compiled once and run in a loop: deep models compile sooner.
    # Dropout draws other masks than without.
    scan_layers: bool = False
    # What each layer computes again in the backward pass, to save memory: none, full, dots (all
    # but matrix products), dots_no_batch (all but products with parameters), offload (these go to
    # the memory of the host).
    remat: str = 'none'


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data, and how it becomes batches."""

    # What is learned, a spec.
    task: str = 'number_words'
    # The language of the source.
    source: str = 'en'
    # The language of the target.
    target: str = 'de'
    # The folder with the task's files; '': the public source of the task.
    source_dir: str = ''
    # Where prepared data is kept between runs; '': ~/.cache/transformer_jax.
    cache_dir: str = ''
    # bpe (joint over both languages), characters or bytes; synthetic tasks have symbols of their
    # own.
    tokenizer: str = 'bpe'
    # The size of the vocabulary, special tokens included.
    vocab_size: int = number(8000, low=5, high=10_000_000)
    # How examples become rows, a spec: buckets or packed.
    batching: str = 'buckets(lengths=(16, 32, 64, 128))'
    # Batches that a thread prepares ahead; 0: none.
    prefetch: int = number(2, low=0, high=1_000)
    # Train on the first so many examples; 0: all.
    max_train_examples: int = number(0, low=0, high=1_000_000_000_000)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of the training loop."""

    # Updates of the parameters; the learning rate schedule ends there.
    steps: int = number(100_000, low=0, high=1_000_000_000)
    # Decides the first parameters, dropout and the order of the data.
    seed: int = number(0, low=0, high=2**32 - 1)
    # Begin with the parameters of another run, WORKDIR or WORKDIR:best|last|avg:N|STEP; '': random
    # ones.
    init_from: str = ''
    # Seeds trained side by side in one program, counted up from seed.
    num_seeds: int = number(1, low=1, high=1_000)
    # Target tokens of a step on all devices together, padding included.
    batch_tokens: int = number(25_000, low=1, high=100_000_000)
    # Microbatches of a step; gradients are summed over them.
    accumulate: int = number(1, low=1, high=10_000)
    # The share of the target probability that is spread over the vocabulary.
    label_smoothing: float = number(0.1, low=0, below=1)
    # Steps between two lines of the log.
    log_every: int = number(100, low=1, high=1_000_000_000)
    # The decay of a moving average of the parameters, which evaluation then uses; 0: none.
    ema: float = number(0.0, low=0, below=1)
    # After an update that is not finite: stop, with exit code 4; or skip it, keep the old state and
    # continue.
    on_nonfinite: str = 'stop'


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The update of the parameters."""

    # The optimizer, a spec: adam, adafactor, lion, muon.
    optimizer: str = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    # The learning rate over the steps, a spec: noam, inverse_sqrt, linear, cosine, constant.
    schedule: str = 'noam(warmup=4000)'
    # The peak of the schedule; of noam a factor on the paper's formula.
    learning_rate: float = number(1.0, low=0, high=1e30)
    # Decoupled weight decay of kernels; norms and biases never decay.
    weight_decay: float = number(0.0, low=0, high=1e6)
    # Whether tables of tokens and positions decay too.
    decay_embeddings: bool = True
    # Gradients are scaled down to this global norm; 0: never.
    clip: float = number(0.0, low=0, high=1e9)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the validation split during training."""

    # Steps between evaluations; 0: never.
    every: int = number(0, low=0, high=1_000_000_000)
    # Epochs between evaluations, in addition; 0: never.
    every_epochs: int = number(0, low=0, high=1_000_000)
    # The metric that decides which checkpoint is the best.
    best_metric: str = 'loss'
    # Stop after so many evaluations without a new best; 0: never.
    patience: int = number(0, low=0, high=1_000_000_000)
    # Sentences that are translated for BLEU; 0: all.
    max_examples: int = number(0, low=0, high=1_000_000_000)
    # Tokens between windows of contiguous text, each read with the context that fits; 0: windows
    # side by side, without overlap.
    stride: int = number(0, low=0, high=1_000_000)
    # SacreBLEU's tokenizer: 13a, intl, char, zh; none for text that is tokenized already.
    bleu_tokenize: str = '13a'
    # Target tokens of a batch in evaluation, padding included.
    batch_tokens: int = number(8192, low=1, high=100_000_000)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    # Steps between checkpoints; 0: only at the end.
    every: int = number(1000, low=0, high=1_000_000_000)
    # Epochs between checkpoints, in addition; 0: never.
    every_epochs: int = number(0, low=0, high=1_000_000)
    # How many of the newest checkpoints are kept, at least; the best one is always kept.
    keep: int = number(3, low=1, high=1_000_000)
    # At least so many of the newest are kept, so that `--checkpoint=avg:N` can average N of them.
    average: int = number(5, low=0, high=1_000_000)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Generation; the defaults are those of Vaswani et al. (2017), section 6.1."""

    # beam, greedy or sample.
    method: str = 'beam'
    # Hypotheses of beam search; 1: greedy.
    beam: int = number(4, low=1, high=1_000)
    # The exponent α of the length penalty (Wu et al. 2016, equation 14).
    length_penalty: float = number(0.6, low=0, high=10)
    # Output tokens beyond the length of the source.
    max_extra_tokens: int = number(50, low=0, high=100_000)
    # Of sampling; 0: greedy.
    temperature: float = number(1.0, low=1e-6, high=1e6, also=(0,))
    # Sample among the k most probable tokens; 0: all.
    top_k: int = number(0, low=0, high=10_000_000)
    # Sample among the most probable tokens that together have this probability.
    top_p: float = number(1.0, above=0, high=1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one of them may be -1, the devices that are left."""

    # Rows of a batch are split over this axis.
    data: int = number(-1, low=1, high=1_000_000, also=(-1,))
    # Parameters, and rows too, are split over this axis.
    fsdp: int = number(1, low=1, high=1_000_000, also=(-1,))
    # Heads and hidden units are split over this axis.
    tensor: int = number(1, low=1, high=1_000_000, also=(-1,))
    # The tokens of a row are split over this axis; never -1, it decides how attention is computed.
    context: int = number(1, low=1, high=1_000_000)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a step is laid out over devices."""

    # jit with shardings, or pmap, which is data parallel alone and draws other dropout masks.
    mode: str = 'jit'
    mesh: MeshConfig = MeshConfig()
    # Over which mesh axes the logical axes of parameters are cut, in place of the table's:
    # 'experts=data, vocab=fsdp+tensor, embed=none'.
    rules: str = ''


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


def evaluates(config: ExperimentConfig) -> bool:
    """Whether the validation split is evaluated during training."""
    return bool(config.evaluate.every or config.evaluate.every_epochs)


def read_splits(config: ExperimentConfig) -> tuple[str, ...]:
    """Name the splits that training reads."""
    return ('train', 'validation') if evaluates(config) else ('train',)


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
    """Flatten a configuration, or its dictionary, to {'train.steps': 100, …}."""
    values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat
