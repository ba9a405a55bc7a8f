"""Warm-up, and where the norm stands (Xiong et al. 2020, Figures 1 and 4).

    transformer-jax ablate experiments/warm_up/norms.py:small --root=runs/warm_up
    transformer-jax report runs/warm_up

After the sum (post-LN) the gradients of the last layers are large at the start, and training needs
a slow beginning; before the layer (pre-LN) they are not. `small`: number words, 6 + 6 layers of
width 64, 300 steps, a warm-up of 100 steps or none; `wmt14`: the paper's base model.

Expected: without warm-up post-LN is much worse than with it; pre-LN is the same.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

# Scale -> (configuration, layers, steps of warm-up, steps, peak).
SCALES = {
    'small': ('configs/number_words.py:en-de', 6, 100, 300, 2e-3),
    'wmt14': ('configs/wmt14.py:en-de,base', 6, 4000, 100_000, 1e-3),
}
MARGIN = 0.05


def get_experiment(scale='small'):
    """Compare norms with and without warm-up; `scale`: small or wmt14."""
    path, layers, warmup, steps, peak = at_scale(scale, SCALES)
    base = config_file(path)
    base.model.encoder_layers = base.model.decoder_layers = layers
    base.train.steps = steps
    base.optim.learning_rate = peak
    if scale == 'small':
        base.model.d_model = 64
        base.model.d_ff = 128
    loss = Metric('loss', 'validation', 'last')
    variants = {
        f'{name}, {words}': {
            'model.norm_placement': placement,
            'optim.schedule': f'linear(warmup={given})',
        }
        for name, placement in (('post-LN', 'post'), ('pre-LN', 'pre'))
        for words, given in (('warm-up', warmup), ('no warm-up', 1))
    }
    return Experiment(
        claim='post-LN needs warm-up, pre-LN does not',
        base=base,
        variants=variants,
        metrics=(loss,),
        seeds=5,
        claims=(
            Claim(
                'post-LN is worse without warm-up',
                metric=str(loss),
                variant='post-LN, no warm-up',
                against='post-LN, warm-up',
                direction='worse',
                source='Xiong et al. (2020), Figure 2',
                doubt='a learning rate at which post-LN learns as well without warm-up',
            ),
            Claim(
                'pre-LN is as good without warm-up',
                metric=str(loss),
                variant='pre-LN, no warm-up',
                against='pre-LN, warm-up',
                direction='equal',
                margin=MARGIN,
                source='Xiong et al. (2020), Figure 4',
                doubt='a learning rate at which pre-LN diverges without warm-up',
            ),
        ),
        differences=(
            Difference(
                'data',
                'IWSLT 2014 German to English, WMT 2014 English to German, BERT',
                'WMT 2014 English to German' if scale == 'wmt14' else 'number words',
            ),
        ),
    )
