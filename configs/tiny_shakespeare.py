r"""Tiny Shakespeare, by characters: the two settings of nanoGPT (Karpathy 2022), and a smaller one.

Learned positions, pre-norm, tied embeddings.

    transformer-jax train --config=configs/tiny_shakespeare.py:cpu --workdir=runs/ts \
        --config.data.source_dir=DIR
    transformer-jax evaluate --workdir=runs/ts --split=validation

DIR holds input.txt, 1,115,394 characters, of which the first 90% train. nanoGPT reports a
validation loss of 1.88 for `cpu` after 2,000 steps, estimated from 20 random batches, and 1.4697 at
best for `gpu`; ours is over the whole validation text. `small` is for experiments on a CPU.
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import check_choice


def get_config(arg='cpu'):
    """`arg`: small (2 layers of 64, context 64), cpu (4 of 128) or gpu (6 of 384, context 256)."""
    sizes = {
        'small': (2, 4, 64, 64, 12, 1000, 0.0),
        'cpu': (4, 4, 128, 64, 12, 2000, 0.0),
        'gpu': (6, 6, 384, 256, 64, 5000, 0.2),
    }
    check_choice('size', arg, sizes)
    layers, heads, width, context, rows, steps, dropout = sizes[arg]
    config = default_config()
    config.data.task = 'text_file'
    config.data.tokenizer = 'characters'
    config.data.vocab_size = 69  # 65 characters and the special tokens
    config.data.batching = f'buckets(lengths=({context},))'

    config.model.kind = 'decoder_only'
    config.model.decoder_layers = layers
    config.model.d_model = width
    config.model.d_ff = 4 * width
    config.model.num_heads = heads
    config.model.position = f'learned(max_len={8 * context})'
    config.model.norm_placement = 'pre'
    config.model.ffn = 'gelu(approximate=False)'
    config.model.embedding_scale = 'none'
    config.model.attention_bias = 'none'
    config.model.dropout = dropout
    config.model.attention_dropout = dropout > 0

    config.train.steps = steps
    config.train.batch_tokens = rows * context
    config.train.label_smoothing = 0.0
    config.optim.optimizer = 'adam(b1=0.9, b2=0.99, eps=1e-8)'
    config.optim.schedule = 'cosine(warmup=100, end=0.1)'
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip = 1.0

    config.evaluate.every = 500 if arg == 'small' else 250
    config.evaluate.batch_tokens = 16_384
    config.checkpoint.every = 250
    config.checkpoint.average = 1
    config.decode.method = 'sample'
    config.decode.temperature = 0.8
    config.decode.max_extra_tokens = 4 * context
    return config
