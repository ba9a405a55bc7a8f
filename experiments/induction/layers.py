"""Induction heads need two layers (Olsson et al. 2022).

    transformer-jax ablate experiments/induction/layers.py:small --root=runs/induction
    transformer-jax report runs/induction

What followed a symbol the first time follows it the second time. One head finds the earlier place
by what stands before it, and so needs a layer below that moves each symbol to its successor.
`small`: sequences of 32 symbols, width 64; `paper`: 256 symbols, as Gu & Dao (2023) train.

Expected: two layers solve the task, one layer does not, whatever its width.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

# Scale -> (length, rows of a step, steps).
SCALES = {'small': (32, 64, 2000), 'paper': (256, 64, 20_000)}
VARIANTS = {
    'two layers': {'model.decoder_layers': 2},
    'one layer': {'model.decoder_layers': 1},
    'one layer, twice as wide': {'model.decoder_layers': 1, 'model.d_model': 128},
}


def get_experiment(scale='small'):
    """Compare depths; `scale`: small or paper."""
    length, rows, steps = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:induction(length={length}, test_length={length})')
    base.train.batch_tokens = rows * length
    base.train.steps = steps
    base.optim.learning_rate = 3e-3
    base.evaluate.every = steps // 4
    accuracy = Metric('accuracy', checkpoint='last')
    return Experiment(
        claim='induction needs two layers of attention',
        base=base,
        variants=VARIANTS,
        metrics=(accuracy,),
        seeds=5,
        claims=(
            Claim(
                'one layer does not learn induction, whatever its width',
                metric=str(accuracy),
                variant=('one layer', 'one layer, twice as wide'),
                direction='worse',
                source='Olsson et al. (2022), argument 1',
                doubt='one layer that solves the task with other positions, or after more steps',
            ),
        ),
        differences=(
            Difference('data', 'natural language', f'random sequences of {length} symbols'),
            Difference(
                'measured', 'loss and heads while language models train', 'accuracy at the end'
            ),
        ),
    )
