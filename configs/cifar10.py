r"""CIFAR-10 as sequences of 1,024 gray pixels.

The image task of Long Range Arena (Krizhevsky 2009; Tay et al. 2021).

    tfds build cifar10 --data_dir=DIR --file_format=array_record
    transformer-jax train --config=configs/cifar10.py --workdir=runs/cifar10 \
        --config.data.source_dir=DIR
    transformer-jax evaluate --workdir=runs/cifar10 --split=test

The model of the published configuration: 1 layer of 32, 1 head, feed-forward 64, learned positions,
a token before the pixels that is classified, 35,000 steps (200 epochs) of 256 images. The
Transformer reached 42.44% there. Other than published: attention weights are not dropped; no hidden
layer stands before the classes.
"""

from transformer_jax.config import default_config


def get_config(arg='softmax'):
    """`arg`: the attention."""
    length, rows = 1024, 256
    epoch = 45_000 // rows
    config = default_config()
    config.data.task = 'cifar10'
    config.data.vocab_size = 260
    config.data.batching = f'buckets(lengths=({length},))'

    config.model.kind = 'classifier'
    config.model.attention = arg
    config.model.encoder_layers = 1
    config.model.d_model = 32
    config.model.d_ff = 64
    config.model.num_heads = 1
    config.model.position = f'learned(max_len={length + 1})'
    config.model.norm_placement = 'pre'
    config.model.ffn = 'gelu'
    config.model.pooling = 'first'
    config.model.tie_embeddings = 'none'
    config.model.embedding_scale = 'none'
    config.model.dropout = 0.3

    config.train.steps = 200 * epoch
    config.train.batch_tokens = rows * length
    config.train.label_smoothing = 0.0
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-9)'
    config.optim.schedule = f'cosine(warmup={epoch})'
    config.optim.learning_rate = 5e-4

    config.evaluate.every = 10 * epoch
    config.evaluate.batch_tokens = rows * length
    config.evaluate.best_metric = 'accuracy'
    config.checkpoint.every = 10 * epoch
    config.checkpoint.average = 1
    return config
