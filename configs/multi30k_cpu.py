"""Multi30k within 100 minutes on 2 CPU cores.

    transformer-jax train --config=configs/multi30k_cpu.py:en-de --workdir=runs/m30k_cpu

Against Transformer-Tiny (configs/multi30k.py): wider and shallower, because small matrix products
waste a CPU; a smaller vocabulary, because the output layer is 40% of the arithmetic at 10,000
pieces; small batches with a low learning rate that falls to zero, because few epochs must do. The
result stands in experiments/multi30k/README.md.

`en-de,small` trains in a few minutes, for tables of many rows: a third of the vocabulary, layers of
64, batches of one shape, greedy decoding.
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import check_choice, language_pair


def get_config(arg='en-de'):
    """`arg`: source and target language, of en, de and fr; `,small` after it."""
    pair, comma, size = arg.partition(',')
    if comma:
        check_choice('size', size, ('small',))
    config = default_config()
    config.data.task = "multi30k(version='lc.norm.tok')"
    config.data.source, config.data.target = language_pair(pair, ('en', 'de', 'fr'))
    config.data.vocab_size = 6000
    config.data.batching = 'buckets(lengths=(13, 17, 21, 26, 34, 72))'

    config.model.encoder_layers = 3
    config.model.decoder_layers = 3
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.dropout = 0.2

    config.train.steps = 6500
    config.train.batch_tokens = 1536
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-8)'
    config.optim.schedule = 'linear(warmup=500)'
    config.optim.learning_rate = 8e-4

    config.evaluate.every = 1300
    config.evaluate.best_metric = 'bleu'
    config.evaluate.bleu_tokenize = 'none'
    config.checkpoint.every = 325
    config.decode.beam = 5
    config.decode.length_penalty = 1.0
    config.decode.max_extra_tokens = 20
    if size == 'small':
        _shrink(config)
    return config


def _shrink(config):
    config.data.vocab_size = 2000
    config.data.batching = 'packed(length=40)'
    config.model.d_model = 64
    config.model.d_ff = 128
    config.model.num_heads = 8
    config.model.dropout = 0.1
    config.train.steps = 2000
    config.train.batch_tokens = 800
    config.optim.learning_rate = 3e-3
    config.optim.schedule = 'linear(warmup=300)'
    config.evaluate.every = 0
    config.checkpoint.every = 500
    config.decode.beam = 1
