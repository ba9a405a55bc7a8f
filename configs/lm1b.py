"""One Billion Words (Chelba et al. 2014): a decoder-only model on sentences, packed into rows that
keep them apart.

    tfds build lm1b --data_dir=DIR --file_format=array_record
    transformer-jax train --config=configs/lm1b.py --config.data.source_dir=DIR --workdir=runs/lm1b
    transformer-jax evaluate --workdir=runs/lm1b --split=test

The sizes are those of the base model of Vaswani et al. (2017). The set has no validation split: 2%
of the held-out text are one, the rest is the test split. The benchmark counts perplexity per word,
which `evaluate` reports beside that per token: 30.0 for the best single LSTM of Józefowicz et al.
(2016), 23.5 for the Transformer-XL of 460 million parameters of Dai et al. (2019), both far larger
than this.

`1b` has 1.1 billion parameters: 16 layers of 2048, as others publish MFU for. By `inspect` a step
needs 12.6 of 16 GiB on each of 16 TPU v5e chips (`--config.parallel.mesh.data=1
--config.parallel.mesh.fsdp=16`); it has not been trained.
"""

from transformer_jax.config import default_config


def get_config(arg='softmax'):
    """`arg`: the attention, or `1b`."""
    config = default_config()
    config.data.task = 'tfds_text'
    config.data.vocab_size = 32_000
    config.data.batching = 'packed(length=256)'

    config.model.kind = 'decoder_only'
    config.model.attention = 'softmax' if arg == '1b' else arg
    config.model.position = 'rope'
    config.model.norm_placement = 'pre'
    config.model.ffn = 'gelu'
    config.model.embedding_scale = 'none'
    config.model.dtype = 'bfloat16'

    config.train.steps = 300_000
    config.train.batch_tokens = 65_536
    config.train.label_smoothing = 0.0
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    config.optim.schedule = 'cosine(warmup=4000, end=0.1)'
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip = 1.0

    config.evaluate.every = 5000
    config.evaluate.batch_tokens = 65_536
    config.checkpoint.every = 5000
    config.checkpoint.average = 1
    config.decode.method = 'sample'
    config.decode.temperature = 0.8
    config.decode.max_extra_tokens = 128
    if arg == '1b':
        _enlarge(config)
    return config


def _enlarge(config):
    config.data.batching = 'packed(length=2048)'
    config.model.decoder_layers = 16
    config.model.d_model = 2048
    config.model.d_ff = 12_288  # of which gated layers take 2/3
    config.model.num_heads = 16
    config.model.norm = 'rms'
    config.model.ffn = 'swiglu'
    config.model.dropout = 0.0
    config.model.scan_layers = True
    config.optim.learning_rate = 3e-4
