"""Multi-query associative recall (Arora et al. 2023, "Zoology", Figure 2).

Which models can look up what was said before?

    transformer-jax ablate experiments/zoology/mqar.py:small --root=runs/mqar
    transformer-jax report runs/mqar

`small`: 64 tokens, 4 pairs. `128`, `256` and `512` are the paper's longer settings (8, 16 and 64
pairs), for a GPU. The paper trains 64 epochs of 100,000 sequences and takes the best of several
learning rates. `small` trains two and a half epochs at one rate, which is enough for softmax
attention, and leaves out Taylor features, which are too slow on a CPU. Width 64, 2 layers, 1 head,
as in the paper (without feed-forward layers). The paper's successor has windows (Arora et al. 2024,
"Based", Figure 2), each combined with a convolution and at other lengths: only their order can be
compared.

Expected: softmax attention reaches 0.99 or more; a window recalls what is within its reach, so
8 < 16 < 32 < all.
"""

from transformer_jax.ablation import (
    Difference,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
)

KINDS = {
    'softmax': 'softmax',
    'window 8': 'softmax(mask=window(8))',
    'window 16': 'softmax(mask=window(16))',
    'window 32': 'softmax(mask=window(32))',
    'linear': 'linear',
    'linear, Taylor': 'linear(feature=taylor)',
    'linear, gated decay': 'linear(decay=gated)',
}
# Scale -> (length, pairs, sequences a step, steps).
SCALES = {
    'small': (64, 4, 128, 2000),
    '128': (128, 8, 256, 25_000),
    '256': (256, 16, 256, 25_000),
    '512': (512, 64, 256, 25_000),
}


def get_experiment(scale='small'):
    """Compare kinds; `scale`: small, or the paper's longer ones: 128, 256, 512."""
    length, pairs, rows, steps = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:mqar(length={length}, pairs={pairs})')
    base.model.num_heads = 1
    base.train.batch_tokens = rows * length
    base.train.steps = steps
    base.optim.learning_rate = 3e-3
    base.evaluate.every = steps // 4
    base.evaluate.best_metric = 'accuracy'
    return Experiment(
        claim='attention solves associative recall; a sliding window only within its reach',
        base=base,
        variants={
            name: {'model.attention': kind}
            for name, kind in KINDS.items()
            if scale != 'small' or name != 'linear, Taylor'
        },
        metrics=(Metric('accuracy'), Metric('exact_match')),
        published=(
            Published(
                'Arora et al. (2024, "Based"), Figure 2, read off',
                'accuracy',
                'test accuracy',
                {'softmax': 1.0, 'window 8': 0.07, 'window 16': 0.15, 'window 32': 0.31},
            ),
        ),
        seeds=3,
        differences=_differences(scale, rows * steps),
    )


def _differences(scale, sequences):
    own = (
        Difference('learning rate', 'the best of several', '3e-3'),
        Difference('feed-forward layers', 'none', 'GELU, width 256'),
        Difference(
            'windows',
            'combined with a convolution, at other lengths (Arora et al. 2024, Figure 2)',
            'alone',
        ),
    )
    if scale != 'small':
        return own
    training = Difference(
        'training', '64 epochs of 100,000 sequences', f'{sequences:,} sequences in all'
    )
    return (training, *own)
