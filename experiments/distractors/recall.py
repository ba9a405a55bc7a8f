"""Differential attention among distractors (Ye et al. 2024, Figure 5).

    transformer-jax ablate experiments/distractors/recall.py:small --root=runs/distractors
    transformer-jax report runs/distractors

Associative recall of one pair among many: the other pairs are distractors. Differential attention
subtracts two maps of weights, so that what both see by chance cancels. At equal parameters.

Expected: differential attention recalls more, the more distractors there are.
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

KINDS = {'softmax': 'softmax', 'differential': 'differential'}
# Scale -> (pairs, symbols, rows of a step, steps).
SCALES = {'small': ((2, 4, 8), 64, 64, 1000), 'long': ((16, 64, 256), 1024, 64, 20_000)}


def get_experiment(scale='small'):
    """Vary the number of pairs; `scale`: small, or long (up to 256 pairs, for a GPU)."""
    counts, symbols, rows, steps = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:{_task(counts[0], symbols)}')
    base.train.steps = steps
    base.optim.learning_rate = 3e-3
    base.evaluate.every = 0
    accuracy = Metric('accuracy', checkpoint='last')
    variants, points = {}, {}
    for pairs in counts:
        for name, kind in KINDS.items():
            row = f'{name}, {pairs} pairs'
            points[row] = name, pairs
            variants[row] = {
                'model.attention': kind,
                'data.task': _task(pairs, symbols),
                'data.batching': f'buckets(lengths=({4 * pairs},))',
                'train.batch_tokens': rows * 4 * pairs,
            }
    return Experiment(
        claim='differential attention finds a pair among more distractors than softmax attention',
        base=base,
        variants=variants,
        metrics=(accuracy,),
        reference='softmax',
        axis=Axis('pairs', points),
        match='params',
        seeds=5,
        claims=(
            Claim(
                'differential attention recalls more among distractors',
                metric=str(accuracy),
                variant='differential',
                against='softmax',
                over='mean',
                source='Ye et al. (2024), Figure 5 and Table 2',
                doubt='an advantage that comes with the size of the model, or with natural text',
            ),
        ),
        differences=(
            Difference('data', 'needles in natural text, 4,096 tokens', 'pairs of random symbols'),
            Difference('model', '3 billion parameters', '2 layers of width 64'),
        ),
    )


def _task(pairs, symbols):
    return f'mqar(length={4 * pairs}, pairs={pairs}, vocab_size={symbols}, held_out=500)'
