"""WMT 2014, the base and big models of Vaswani et al. (2017), Tables 2 and 3.

    transformer-jax train --config=configs/wmt14.py:en-de,base --workdir=gs://bucket/wmt14-base

On 8 devices; the paper took 12 hours (base, 100,000 steps) and 3.5 days (big, 300,000 steps) on 8
P100 and reports newstest2014 BLEU 27.3 and 28.4 (tokenised, compound splitting; averages of the
last 5 and 20 checkpoints); `evaluate` reports sacreBLEU's 13a on plain text, without compound
splitting: not comparable to the decimal. The set must have been prepared as ArrayRecord; the error
that says so prints the command.
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import check_choice, language_pair


def get_config(arg='en-de,base'):
    """`arg`: direction, en-de, de-en, en-fr or fr-en, and size, base or big."""
    direction, _, size = arg.partition(',')
    check_choice('direction', direction, ('en-de', 'de-en', 'en-fr', 'fr-en'))
    check_choice('size', size, ('base', 'big'))
    config = default_config()
    config.data.source, config.data.target = language_pair(direction)
    other = config.data.source if config.data.target == 'en' else config.data.target
    config.data.task = f"tfds_translation(name='wmt14_translate/{other}-en')"
    config.data.vocab_size = 37_000 if other == 'de' else 32_000
    config.data.batching = 'packed(length=256)'

    big = size == 'big'
    config.model.d_model = 1024 if big else 512
    config.model.d_ff = 4096 if big else 2048
    config.model.num_heads = 16 if big else 8
    config.model.dropout = (0.1 if other == 'fr' else 0.3) if big else 0.1
    config.model.dtype = 'bfloat16'

    config.train.steps = 300_000 if big else 100_000
    config.train.batch_tokens = 25_600
    config.optim.schedule = 'noam(warmup=4000)'

    config.evaluate.every = 2000
    config.checkpoint.every = 1000
    config.checkpoint.average = 20 if big else 5
    return config
