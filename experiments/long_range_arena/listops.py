"""ListOps of Long Range Arena (Tay et al. 2021, Tables 1 and 2): kinds of attention.

    transformer-jax ablate experiments/long_range_arena/listops.py:small --root=runs/listops
    transformer-jax report runs/listops

`lra` is the published task (500 to 2,000 tokens) and the published model (see
`configs/listops.py`), for a GPU. `small`: up to 200 tokens at depth 5, 4 layers of width 64.
`speed`: one layer of the published model on one sequence of 1,024 to 4,096 tokens, only for the
time and memory of a step (25 minutes a seed on 2 CPU cores; the paper timed 32 sequences of bytes
on TPUs).

Expected: full attention is clearly better than always naming the largest class; the paper has 36.37
for it and 15.82 (local) to 37.27 (Reformer) for the others. Time and memory grow with the square of
the length where every token attends to every other.
"""

from transformer_jax.ablation import (
    Axis,
    Difference,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
)

# Accuracy in percent.
PAPER = {
    'softmax': 36.37,
    'local': 15.82,
    'strided': 17.07,
    'Longformer': 35.63,
    'Linformer': 35.70,
    'Reformer': 37.27,
    'Sinkhorn': 33.67,
    'Synthesizer': 36.99,
    'BigBird': 36.05,
    'linear': 16.13,
    'Performer': 18.01,
}
# Steps per second at each length; strided and Longformer are not timed there.
LENGTHS = (1024, 2048, 3072, 4096)
PAPER_SPEED = {
    'softmax': (8.1, 4.9, 2.3, 1.4),
    'local': (9.2, 8.4, 7.4, 7.4),
    'Linformer': (9.3, 9.1, 8.5, 7.7),
    'Reformer': (4.4, 2.2, 1.5, 1.1),
    'Sinkhorn': (9.1, 7.9, 6.6, 5.3),
    'Synthesizer': (8.7, 5.7, 6.6, 1.9),
    'BigBird': (7.4, 3.9, 2.7, 1.5),
    'linear': (9.1, 9.3, 8.6, 7.8),
    'Performer': (9.5, 9.4, 8.7, 8.0),
}


def get_experiment(scale='small'):
    """Compare kinds of attention; `scale`: small, lra or speed."""
    return at_scale(scale, {'small': small, 'lra': lra, 'speed': speed})()


# Of the model where it is scored, see configs/listops.py.
MODEL = (
    Difference('pooling', '[CLS], a token put before the text', 'the mean over tokens'),
    Difference('weights of layers', 'tied between layers', 'not tied'),
)
SMALL = (
    Difference('data', '500 to 2,000 tokens, depth 10', '20 to 200 tokens, depth 5'),
    Difference(
        'model',
        '6 layers of width 512, d_ff 2,048, 8 heads',
        '4 layers of width 64, d_ff 128, 4 heads',
    ),
    Difference(
        'training',
        '5,000 steps of 32 sequences',
        '600 steps of up to 6,656 tokens, padding included',
    ),
)
SPEED = (
    Difference('data', '32 sequences of bytes a step', 'one sequence of ListOps a step'),
    Difference('model', 'a whole model', 'one layer of width 512, 8 heads'),
    Difference('device', 'TPUs', 'that of "How it was run"'),
    Difference('measure', 'steps per second', 'seconds per step'),
)


def kinds(length, window, block):
    """Return the variants: the paper's kinds, by its names, and two more bidirectional kinds.

    Args:
        length: of a row, in tokens.
        window: of local attention.
        block: the size of blocks and chunks.
    """
    attentions = {
        'softmax': 'softmax',
        'local': f'softmax(mask=window({window}))',
        'strided': f'softmax(mask=strided({window}))',
        'Longformer': f'softmax(mask=window({window}) | global_tokens(4))',
        'BigBird': f'softmax(mask=bigbird(block={block}, length={length}))',
        'Linformer': f'linformer(length={length}, rank={4 * block})',
        'Reformer': f'reformer(buckets=8, chunk={block})',
        'Sinkhorn': f'sinkhorn(block={block})',
        'Synthesizer': f'synthesizer(max_len={length})',
        'linear': 'linear',
        'Performer': 'linear(feature=favor(features=256))',
        'differential': 'differential',
        'latent': 'latent',
    }
    return {name: {'model.attention': attention} for name, attention in attentions.items()}


def small():
    """Describe the small setting, for 2 CPU cores."""
    base = config_file('configs/listops.py:small')
    base.train.steps = 600
    return quality(base, kinds(208, 16, 16), SMALL)


def lra():
    """Describe the published setting, for a GPU."""
    # Additive scores need the width of a head for each pair of tokens: too slow for a CPU, and too
    # much memory at once.
    additive = {'additive': {'model.attention': 'additive', 'model.engine': 'chunked'}}
    return quality(config_file('configs/listops.py:lra'), kinds(2016, 64, 32) | additive)


def quality(base, variants, differences=()):
    """Describe the comparison of accuracies (Table 1)."""
    return Experiment(
        claim='full attention is well above chance on ListOps; local and linear attention are not',
        base=base,
        variants=variants,
        metrics=(Metric('accuracy'),),
        seeds=3,
        differences=MODEL + differences,
        published=(
            Published(
                'Tay et al. (2021), Table 1',
                'accuracy',
                'test accuracy',
                {name: round(value / 100, 4) for name, value in PAPER.items()},
            ),
        ),
    )


def speed():
    """Describe the cost of a step as sequences grow (Table 2)."""
    base = config_file('configs/listops.py:lra')
    base.model.encoder_layers = 1
    base.model.position = f'learned(max_len={LENGTHS[-1]})'
    base.train.steps = base.train.log_every = 1
    base.evaluate.every = 0
    variants, points, paper = {}, {}, {}
    for number, length in enumerate(LENGTHS):
        shape = {
            'data.task': f'listops(min_length={length // 2}, max_length={length - 1})',
            'data.batching': f'buckets(lengths=({length},))',
            'train.batch_tokens': length,
            'evaluate.batch_tokens': length,
        }
        for name, change in kinds(length, 64, 32).items():
            row = f'{name} at {length}'
            variants[row], points[row] = shape | change, (name, length)
            if name in PAPER_SPEED:
                paper[row] = PAPER_SPEED[name][number]
    return Experiment(
        claim='the longer a sequence, the more time a window, a low rank or linear attention saves',
        base=base,
        variants=variants,
        metrics=(Metric('step_seconds'),),
        reference='softmax',
        seeds=3,
        axis=Axis('tokens in a sequence', points),
        differences=SPEED,
        published=(
            Published('Tay et al. (2021), Table 2', 'steps per second', 'step_seconds', paper),
        ),
    )
