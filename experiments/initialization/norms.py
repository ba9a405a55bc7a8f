"""Gradients at initialization, by where the norm stands (Xiong et al. 2020, Figure 3).

    transformer-jax ablate experiments/initialization/norms.py:small --root=runs/first_gradients
    transformer-jax report runs/first_gradients

Nothing is trained: the gradients of the feed-forward layers of the decoder are measured as the
model is initialized. By the paper's Theorem 1 that of the last of L layers is O(d √ln d) with
post-LN, and smaller by √L with pre-LN.

Expected: with post-LN the gradient of the last layer is larger than with pre-LN.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

PLACEMENTS = {'post-LN': 'post', 'pre-LN': 'pre'}
SCALES = {'small': (6, 64), 'paper': (6, 512)}  # layers, width


def get_experiment(scale='small'):
    """Compare placements, layer by layer; `scale`: small or paper."""
    depth, width = at_scale(scale, SCALES)
    base = config_file('configs/number_words.py:en-de')
    base.model.encoder_layers = base.model.decoder_layers = depth
    base.model.d_model = width
    base.model.d_ff = 4 * width
    base.train.steps = 0
    base.evaluate.every = 0
    last, first = (
        Metric('gradient_norm', 'validation', 'last', part=f'decoder_{layer}/ffn')
        for layer in (depth - 1, 0)
    )
    return Experiment(
        claim='at initialization the gradients of the last layers are larger with post-LN',
        base=base,
        variants={
            name: {'model.norm_placement': placement} for name, placement in PLACEMENTS.items()
        },
        metrics=(last, first),
        seeds=20,
        claims=(
            Claim(
                'the last layer begins with a smaller gradient with pre-LN than with post-LN',
                metric=str(last),
                variant='pre-LN',
                source='Xiong et al. (2020), Figure 3',
                doubt='another initialization, as that of T-Fixup or DeepNorm',
            ),
        ),
        differences=(
            Difference('data', 'IWSLT 2014 German to English', 'number words'),
            *([Difference('width', '512', str(width))] if width != 512 else []),
        ),
    )
