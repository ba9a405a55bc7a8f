"""The clipping distance k of relative positions (Shaw et al. 2018, Table 2).

    transformer-jax ablate experiments/shaw/clip.py:small --root=runs/clip
    transformer-jax report runs/clip

`wmt14`: the paper's base model, newstest2013. `multi30k`: Transformer-Tiny. `small`: number words
with 300 steps; the sentences are so short that k beyond 16 can change nothing.

Expected: k = 0, no order at all, is far worse than the rest; from k = 2 on nothing changes.
"""

from transformer_jax.ablation import (
    Axis,
    Claim,
    Difference,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
)

PAPER = {0: 12.5, 1: 25.5, 2: 25.8, 4: 25.9, 16: 25.8, 64: 25.9, 256: 25.8}  # BLEU, newstest2013
CONFIGS = {
    'small': 'configs/number_words.py:en-de',
    'multi30k': 'configs/multi30k.py:en-de',
    'wmt14': 'configs/wmt14.py:en-de,base',
}
# What each scale has in place of the paper's data and model.
HERE = {
    'small': (
        'number words, English to German',
        '2 layers of width 128, 4 heads',
        '300 steps of up to 2,048 target tokens',
    ),
    'multi30k': (
        'Multi30k captions, English to German',
        'Transformer-Tiny (Wu et al. 2021): 4 layers of width 128, 4 heads',
        'up to 8,000 steps of up to 8,192 target tokens, patience 10',
    ),
}


def get_experiment(scale='small'):
    """Vary the clipping distance; `scale`: small (number words), multi30k or wmt14."""
    base = config_file(at_scale(scale, CONFIGS))
    distances = tuple(k for k in PAPER if k <= 16) if scale == 'small' else tuple(PAPER)
    if scale == 'small':
        base.train.steps = 300
    bleu = Metric('bleu', 'validation' if scale == 'wmt14' else 'test')
    return Experiment(
        claim='precise relative positions matter only nearby',
        base=base,
        # Clipped at 0, all keys have the same distance: the encoder sees a set of words.
        variants={
            f'k = {k}': {'model.position': f'shaw(clip={k})' if k else 'none'} for k in distances
        },
        metrics=(bleu, Metric('exact_match')) if scale == 'small' else (bleu,),
        published=(
            Published(
                'Shaw et al. (2018), Table 2',
                'BLEU, newstest2013',
                str(bleu),
                {f'k = {k}': PAPER[k] for k in distances},
            ),
        ),
        reference='k = 16',
        seeds=3,
        claims=(
            Claim(
                'without relative positions BLEU is lower',
                metric=str(bleu),
                variant='k = 0',
                direction='worse',
                source='Shaw et al. (2018), Table 2',
                doubt='a task whose words need no order',
            ),
            Claim(
                'beyond 2 tokens the clipping distance does not matter',
                metric=str(bleu),
                variant='k = 2',
                direction='equal',
                margin=0.5,
                source='Shaw et al. (2018), Table 2',
                doubt='a difference on a task that is not at its ceiling',
            ),
        ),
        differences=_differences(scale),
        axis=Axis('clipping distance k', {f'k = {k}': ('Shaw', k) for k in distances}),
    )


def _differences(scale):
    clipped = Difference(
        'k = 0', 'relative positions clipped at distance 0', 'no position encoding: it is the same'
    )
    if scale == 'wmt14':
        return (clipped,)
    data, model, training = HERE[scale]
    return (
        Difference('data', 'WMT 2014 English to German, scored on newstest2013', data),
        Difference('model', 'the base model for WMT 2014', model),
        Difference('training', 'that of the base model (here `wmt14`: 100,000 steps)', training),
        clipped,
    )
