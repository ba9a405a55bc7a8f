"""Why 1/√d_k: dot-product attention with and without it, and additive attention, as d_k grows.

    transformer-jax ablate experiments/attention_is_all_you_need/scaling.py:small --root=runs/scale
    transformer-jax report runs/scale

Vaswani et al. (2017), section 3.2.1: "for large values of d_k, the dot products grow large in
magnitude, pushing the softmax function into regions where it has extremely small gradients";
there, additive attention outperforms dot-product attention without scaling (Britz et al. 2017).
`small`: number words, one head with d_k 16 to 256. `multi30k`: captions, d_k up to 512.

Expected: the three agree at small d_k; without scaling, dot-product attention falls behind as d_k
grows.
"""

from transformer_jax.ablation import (
    Axis,
    Claim,
    Difference,
    Experiment,
    Metric,
    at_scale,
    config_file,
)

KINDS = {'scaled': 'softmax', 'unscaled': "softmax(scale='none')", 'additive': 'additive'}
SCALES = {
    'small': ('configs/number_words.py:en-de', (16, 64, 256)),
    'multi30k': ('configs/multi30k.py:en-de', (16, 64, 256, 512)),
}


def get_experiment(scale='small'):
    """Compare the three at each d_k; `scale`: small (number words) or multi30k."""
    config, sizes = at_scale(scale, SCALES)
    base = config_file(config)
    base.model.num_heads = 1
    if scale == 'small':
        base.model.d_model = 64
        base.train.steps = 300
    variants = {
        f'{name} at {d_k}': {'model.attention': kind, 'model.head_dim': d_k}
        for d_k in sizes
        for name, kind in KINDS.items()
    }
    points = {f'{name} at {d_k}': (name, d_k) for d_k in sizes for name in KINDS}
    metrics = (
        (Metric('loss'), Metric('exact_match'))
        if scale == 'small'
        else (Metric('loss'), Metric('bleu'))
    )
    return Experiment(
        claim='without 1/√d_k dot-product attention falls behind additive attention as d_k grows',
        base=base,
        variants=variants,
        metrics=metrics,
        seeds=3,
        reference='scaled',
        axis=Axis('d_k', points),
        claims=(
            Claim(
                'without 1/√d_k the loss is higher at large d_k',
                metric='test loss',
                variant=f'unscaled at {sizes[-1]}',
                direction='worse',
                source='Vaswani et al. (2017), section 3.2.1',
                doubt='a learning rate at which both are equal',
            ),
            Claim(
                'the larger d_k, the more the loss suffers without 1/√d_k',
                metric='test loss',
                variant='unscaled',
                against='scaled',
                direction='worse',
                over='slope',
                source='Vaswani et al. (2017), section 3.2.1',
                doubt='a task on which larger heads do not help by themselves',
            ),
        ),
        differences=(
            Difference(
                'evidence',
                'section 3.2.1 states it and cites Britz et al. (2017), without a table',
                'a table over d_k, one head',
            ),
            Difference(
                'data and training',
                'none given with the statement',
                'number words, 2 layers of width 64, 300 steps'
                if scale == 'small'
                else 'Multi30k captions, Transformer-Tiny (Wu et al. 2021) with one head',
            ),
        ),
    )
