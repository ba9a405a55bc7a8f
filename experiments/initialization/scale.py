"""Why 1/√d_k, at initialization (Vaswani et al. 2017, section 3.2.1 and its footnote 4).

    transformer-jax ablate experiments/initialization/scale.py:small --root=runs/scale
    transformer-jax report runs/scale

Nothing is trained: the model is measured as it is initialized, with many seeds. "For large values
of d_k, the dot products grow large in magnitude, pushing the softmax function into regions where it
has extremely small gradients": with variance 1 in each part of q and k, q·k has the variance d_k.

Expected: without the scale the spread of the scores grows as √d_k, the weights gather on few keys
and the gradient of the projection of queries gets smaller against that with the scale; with it
nothing depends on d_k.
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

KINDS = {'scaled': 'softmax', 'unscaled': "softmax(scale='none')"}
SIZES = {'small': (4, 16, 64, 256), 'large': (4, 16, 64, 256, 1024)}
SOURCE = 'Vaswani et al. (2017), section 3.2.1'
DOUBT = 'another initialization of the projections, which puts the scale into their weights'


def get_experiment(scale='small'):
    """Vary d_k; `scale`: small, or large (up to 1,024)."""
    sizes = at_scale(scale, SIZES)
    base = config_file('configs/generated.py:copy(length=32, test_length=32),decoder_only')
    base.model.num_heads = 1
    base.model.position = 'none'
    base.train.steps = 0
    base.evaluate.every = 0
    variants = {
        f'{name} at {d_k}': {'model.attention': kind, 'model.head_dim': d_k}
        for d_k in sizes
        for name, kind in KINDS.items()
    }
    spread = Metric('logit_std', 'validation', 'last')
    entropy = Metric('normalized_entropy', 'validation', 'last')
    return Experiment(
        claim='without 1/√d_k the scores grow with d_k, and softmax gathers on few keys',
        base=base,
        variants=variants,
        metrics=(spread, entropy),
        seeds=20,
        reference='scaled',
        axis=Axis('d_k', {f'{name} at {d_k}': (name, d_k) for d_k in sizes for name in KINDS}),
        claims=(
            Claim(
                'without 1/√d_k the spread of the scores grows with d_k, with it it does not',
                metric=str(spread),
                variant='unscaled',
                against='scaled',
                direction='worse',
                over='slope',
                source=SOURCE,
                doubt=DOUBT,
            ),
            Claim(
                'without 1/√d_k the weights gather on fewer keys as d_k grows',
                metric=str(entropy),
                variant='unscaled',
                against='scaled',
                direction='worse',
                over='slope',
                source=SOURCE,
                doubt=DOUBT,
            ),
        ),
        differences=(
            Difference(
                'evidence', 'an argument about independent parts of q and k', 'a model, measured'
            ),
        ),
    )
