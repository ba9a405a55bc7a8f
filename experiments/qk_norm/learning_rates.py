"""QK norm and the range of stable learning rates (Wortsman et al. 2023, Figure 1).

    transformer-jax ablate experiments/qk_norm/learning_rates.py:small --root=runs/qk_norm
    transformer-jax report runs/qk_norm

The loss after training against the learning rate, with and without normalized queries and keys
(Dehghani et al. 2023). The paper's learning rate sensitivity is the mean over learning rates of the
loss above the best one; here it is the quantity `excess` of the claim. `small`: tiny Shakespeare by
characters, 2 layers of width 64, 500 steps; `cpu`: nanoGPT's setting for a CPU. The text is
`input.txt` in the current directory, or in DIR with `--config.data.source_dir=DIR`.

Expected: at the best rate both are equal; beyond it the loss rises sooner without QK norm.
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

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
LINES = {'plain': 'softmax', 'QK norm': 'softmax(qk_norm=True)'}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # the paper: 3e-4 to 3e-1


def get_experiment(scale='small'):
    """Vary the learning rate; `scale`: small or cpu."""
    base = config_file(at_scale(scale, CONFIGS))
    if scale == 'small':
        base.train.steps = 500
    loss = Metric('loss', 'validation', 'last')
    return Experiment(
        claim='with QK norm the loss depends less on the learning rate',
        base=base,
        variants={
            f'{line}, {rate:g}': {'model.attention': kind, 'optim.learning_rate': rate}
            for line, kind in LINES.items()
            for rate in RATES
        },
        metrics=(loss,),
        reference='plain',
        seeds=5,
        axis=Axis(
            'learning rate',
            {f'{line}, {rate:g}': (line, rate) for line in LINES for rate in RATES},
        ),
        claims=(
            Claim(
                'QK norm widens the range of stable learning rates',
                metric=str(loss),
                variant='QK norm',
                against='plain',
                over='excess',
                source='Wortsman et al. (2023), Figure 1; Dehghani et al. (2023)',
                doubt=(
                    'a larger model in which QK norm loses more than it wins between the best rate '
                    'and 100 times that'
                ),
            ),
        ),
        differences=(
            Difference('data', 'C4, 32,000 word pieces', 'tiny Shakespeare, characters'),
            Difference(
                'training',
                '100,000 steps of 256 rows of 512 tokens, warm-up of 5,000',
                f'{base.train.steps:,} steps of 12 rows of 64, warm-up of 100',
            ),
        ),
    )
