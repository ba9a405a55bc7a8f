"""Multi30k, Transformer-Tiny of Wu et al. (2021), 'Good for Misconceived Reasons'.

    transformer-jax train --config=configs/multi30k.py:en-de --workdir=runs/m30k

Lower-cased, normalised, tokenised captions; tokenised BLEU on test2016. The paper reports 41.02 for
its average of the last 10 epochs, beam 5, length penalty 1:

    transformer-jax evaluate --workdir=runs/m30k --checkpoint=avg:10
"""

from transformer_jax.config import default_config
from transformer_jax.config.file_arguments import language_pair


def get_config(arg='en-de'):
    """`arg`: source and target language, of en, de and fr."""
    config = default_config()
    config.data.task = "multi30k(version='lc.norm.tok')"
    config.data.source, config.data.target = language_pair(arg, ('en', 'de', 'fr'))
    config.data.vocab_size = 10_000
    config.data.batching = 'buckets(lengths=(12, 16, 20, 24, 32, 48, 80))'

    config.model.encoder_layers = 4
    config.model.decoder_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.dropout = 0.3

    config.train.steps = 8000
    config.train.batch_tokens = 8192
    config.train.label_smoothing = 0.1
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-8)'
    config.optim.schedule = 'inverse_sqrt(warmup=2000)'
    config.optim.learning_rate = 5e-3

    config.evaluate.every_epochs = 1
    config.evaluate.bleu_tokenize = 'none'
    config.evaluate.patience = 10
    config.checkpoint.every = 0
    config.checkpoint.every_epochs = 1
    config.checkpoint.average = 10
    config.decode.beam = 5
    config.decode.length_penalty = 1.0
    return config
