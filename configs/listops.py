"""ListOps of Long Range Arena (Nangia & Bowman 2018; Tay et al. 2021): a classifier reads a nested
list operation.

    transformer-jax train --config=configs/listops.py:small --workdir=runs/listops
    transformer-jax train --config=configs/listops.py:lra,linear --workdir=runs/listops-linear

`lra` is the published task, 500 to 2,000 tokens, and the published model (6 layers of 512, 8 heads,
feed-forward 2,048, 5,000 steps of 32 sequences), but that no weights are tied between layers and
tokens are averaged, not headed by [CLS]; the Transformer reached 36.37% there. `small` has up to
200 tokens at depth 5.
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import check_choice


def get_config(arg='small'):
    """`arg`: small or lra, then optionally the attention: 'small,softmax(mask=window(16))'."""
    size, _, attention = arg.partition(',')
    check_choice('size', size, ('small', 'lra'))
    config = default_config()
    config.model.kind = 'classifier'
    config.model.attention = attention or 'softmax'
    config.model.norm_placement = 'pre'
    config.model.embedding_scale = 'none'
    config.model.tie_embeddings = 'none'
    config.train.label_smoothing = 0.0
    config.data.vocab_size = 19
    config.evaluate.best_metric = 'accuracy'
    config.checkpoint.average = 1
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    config.optim.weight_decay = 0.01
    config.optim.clip = 1.0
    if size == 'lra':
        config.data.task = 'listops'
        config.data.batching = 'buckets(lengths=(2016,))'
        config.model.encoder_layers = 6
        config.model.position = 'learned(max_len=2100)'
        config.train.steps = 5000
        config.train.batch_tokens = 32 * 2016
        config.optim.schedule = 'inverse_sqrt(warmup=1000)'
        config.optim.learning_rate = 0.05 * 1000**-0.5
        config.optim.weight_decay = 0.1
        config.evaluate.every = 500
        config.evaluate.batch_tokens = 32 * 2016
    else:
        config.data.task = 'listops(min_length=20, max_length=200, max_depth=5, max_args=10)'
        config.data.batching = 'buckets(lengths=(64, 128, 208))'
        config.model.encoder_layers = 4
        config.model.d_model = 64
        config.model.d_ff = 128
        config.model.num_heads = 4
        config.model.position = 'sinusoidal'
        config.model.dropout = 0.1
        config.train.steps = 4000
        config.train.batch_tokens = 32 * 208
        config.optim.schedule = 'cosine(warmup=200)'
        config.optim.learning_rate = 1e-3
        config.evaluate.every = 500
        config.evaluate.batch_tokens = 16_384
    return config
