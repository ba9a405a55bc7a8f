"""Number words from one language to another: the smallest translation with reordering.

    transformer-jax train --config=configs/number_words.py:en-de --workdir=runs/number_words

'twenty-four' becomes 'vierundzwanzig'. Any two languages of num2words; the numbers below 10,000 but
for the 500 + 500 that validation and test hold out.
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import language_pair


def get_config(arg='en-de'):
    """`arg`: source and target language."""
    config = default_config()
    config.data.task = 'number_words'
    config.data.source, config.data.target = language_pair(arg)
    config.data.vocab_size = 160
    config.data.batching = 'buckets(lengths=(8, 12, 16, 24))'

    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4

    config.train.steps = 500
    config.train.batch_tokens = 2048
    config.train.log_every = 20
    config.optim.schedule = 'linear(warmup=60)'
    config.optim.learning_rate = 1e-3
    config.evaluate.every = 250
    config.evaluate.max_examples = 200
    config.evaluate.bleu_tokenize = 'char'  # a number is one word or a few
    config.checkpoint.every = 250
    return config
