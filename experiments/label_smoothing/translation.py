"""Label smoothing: worse perplexity, better BLEU (Vaswani et al. 2017, section 5.4).

    transformer-jax ablate experiments/label_smoothing/translation.py:small --root=runs/smoothing
    transformer-jax report runs/smoothing

The model is taught to give 10% of each target token's probability to the other tokens. `small`:
Multi30k with the small recipe for a CPU; `multi30k`: Transformer-Tiny; `wmt14`: the paper's base
model. Perplexity is without smoothing for both.

Expected: more perplexity, and a higher BLEU.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {
    'small': 'configs/multi30k_cpu.py:en-de,small',
    'multi30k': 'configs/multi30k.py:en-de',
    'wmt14': 'configs/wmt14.py:en-de,base',
}
SOURCE = 'Vaswani et al. (2017), section 5.4 and Table 3 (D)'
DOUBT = 'the other sign after training to convergence, at any size'


def get_experiment(scale='small'):
    """Compare 0 and 0.1; `scale`: small, multi30k or wmt14."""
    base = config_file(at_scale(scale, CONFIGS))
    # The output of the last steps is noisy: the mean of checkpoints is what papers score.
    checkpoint = 'last' if scale == 'small' else 'avg:5'
    perplexity = Metric('perplexity', 'validation', checkpoint)
    bleu = Metric('bleu', 'test', checkpoint)
    return Experiment(
        claim='label smoothing raises perplexity and BLEU',
        base=base,
        variants={
            'no smoothing': {'train.label_smoothing': 0.0},
            'smoothing 0.1': {'train.label_smoothing': 0.1},
        },
        metrics=(perplexity, bleu),
        seeds=5,
        claims=(
            Claim(
                'label smoothing raises perplexity',
                metric=str(perplexity),
                variant='smoothing 0.1',
                direction='worse',
                source=SOURCE,
                doubt=DOUBT,
            ),
            Claim(
                'label smoothing raises BLEU',
                metric=str(bleu),
                variant='smoothing 0.1',
                source=SOURCE,
                doubt=DOUBT,
            ),
        ),
        differences=(
            Difference(
                'data and model',
                'WMT 2014, the base model',
                {
                    'small': 'Multi30k, 2,000 words, 3 layers of width 64, 2,000 steps',
                    'multi30k': 'Multi30k, Transformer-Tiny (Wu et al. 2021)',
                    'wmt14': 'the same',
                }[scale],
            ),
        ),
    )
