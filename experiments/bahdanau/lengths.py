"""Attention helps a recurrent translator with long sentences (Bahdanau et al. 2015, Figure 2).

    transformer-jax ablate experiments/bahdanau/lengths.py:small --root=runs/bahdanau
    transformer-jax report runs/bahdanau

BLEU of captions of up to 10, 14, 20 and 40 tokens, by a GRU with additive attention, and by one
that keeps a sentence in one vector. `small`: Multi30k with the small recipe for a CPU; `multi30k`:
an hour a run there.

Expected: without attention the BLEU of long sentences is lower than that of short ones, with it it
is not.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {
    'small': 'configs/multi30k_cpu.py:en-de,small',
    'multi30k': 'configs/multi30k_cpu.py:en-de',
}
LENGTHS = (10, 14, 20, 40)


def get_experiment(scale='small'):
    """Compare a GRU with and without attention; `scale`: small or multi30k."""
    base = config_file(at_scale(scale, CONFIGS))
    base.data.batching = f'buckets(lengths={LENGTHS})'  # recurrent models take no packed rows
    base.model.kind = 'rnn_seq2seq'
    base.model.encoder_layers = base.model.decoder_layers = 1
    base.model.d_model = 96 if scale == 'small' else 256
    base.optim.clip = 1.0
    base.optim.learning_rate = 3e-3 if scale == 'small' else 1e-3
    metrics = tuple(Metric('bleu', checkpoint='last', length=length) for length in LENGTHS)
    return Experiment(
        claim='attention helps a recurrent translator with long sentences',
        base=base,
        variants={
            'GRU': {'model.rnn': "gru(attention='none')"},
            'GRU + attention': {'model.rnn': "gru(attention='additive')"},
        },
        metrics=metrics,
        seeds=5,
        claims=tuple(
            Claim(
                f'attention raises the BLEU of {words} sentences',
                metric=str(metric),
                variant='GRU + attention',
                source='Bahdanau et al. (2015), Figure 2',
                doubt='a GRU without attention that translates them as well, of the same size',
            )
            for words, metric in (('short', metrics[0]), ('long', metrics[-1]))
        ),
        differences=(
            Difference(
                'data', 'English to French, WMT 2014, up to 60 words', 'Multi30k, up to 40 tokens'
            ),
            Difference('model', 'GRU of 1,000 units', f'GRU of {base.model.d_model} units'),
        ),
    )
