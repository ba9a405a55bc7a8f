"""Recall against the size of the state (Arora et al. 2024, "Based", Figure 2).

    transformer-jax ablate experiments/zoology/state.py:small --root=runs/state
    transformer-jax report runs/state

A model that decodes keeps something of what it has read: softmax attention all keys and values, a
window the last of them, linear attention one matrix for each head. The axis is the number of bytes
that it keeps, which grows with the window, or with the width of queries and keys. The task is
associative recall, see mqar.py. `small`: 32 tokens, 4 pairs of 64 symbols; `paper`: 256 tokens, 16
pairs of 8,192.

Expected: within a kind a larger state recalls more; softmax attention recalls all.
"""

from transformer_jax.ablation import (
    Axis,
    Claim,
    Difference,
    Experiment,
    Metric,
    at_scale,
    config_file,
    state_bytes,
)

# Scale -> (length, pairs, symbols, rows of a step, steps, windows, widths of a head).
SCALES = {
    'small': (32, 4, 64, 64, 1500, (4, 8, 16), (4, 16, 64)),
    'paper': (256, 16, 8192, 256, 25_000, (16, 32, 64, 128), (16, 32, 64, 128)),
}
SOURCE = 'Arora et al. (2024, "Based"), Figure 2'


def get_experiment(scale='small'):
    """Vary the state; `scale`: small or paper."""
    length, pairs, symbols, rows, steps, windows, widths = at_scale(scale, SCALES)
    base = config_file(
        f'configs/generated.py:mqar(length={length}, pairs={pairs}, vocab_size={symbols}, '
        'held_out=1000)'
    )
    base.model.num_heads = 1
    base.train.batch_tokens = rows * length
    base.train.steps = steps
    base.optim.learning_rate = 3e-3
    base.evaluate.every = 0
    kinds = {f'window {size}': ('window', f'softmax(mask=window({size}))', 64) for size in windows}
    for width in widths:
        kinds[f'linear {width}'] = 'linear', 'linear', width
        kinds[f'gated {width}'] = 'linear, gated decay', 'linear(decay=gated)', width
    kinds['softmax'] = 'softmax', 'softmax', 64
    variants = {
        name: {'model.attention': kind, 'model.head_dim': width}
        for name, (_, kind, width) in kinds.items()
    }
    points = {
        name: (line, state_bytes(base, length, variants[name]))
        for name, (line, *_) in kinds.items()
    }
    accuracy = Metric('accuracy', checkpoint='last')
    larger = {'window': windows, 'linear': widths, 'gated': widths}
    return Experiment(
        claim='a larger state recalls more',
        base=base,
        variants=variants,
        metrics=(accuracy,),
        reference='softmax',
        axis=Axis('bytes of state for one sequence', points),
        seeds=5,
        claims=(
            *(
                Claim(
                    f'{kind}: a larger state recalls more',
                    metric=str(accuracy),
                    variant=f'{kind} {sizes[-1]}',
                    against=f'{kind} {sizes[0]}',
                    source=SOURCE,
                    doubt='the same recall with a small state, after tuning of each variant',
                )
                for kind, sizes in larger.items()
            ),
            Claim(
                'softmax attention recalls more than linear attention with its largest state',
                metric=str(accuracy),
                variant=f'linear {widths[-1]}',
                direction='worse',
                source=SOURCE,
                doubt='linear attention that recalls all, with other features or more steps',
            ),
        ),
        differences=(
            Difference('data', '256 tokens, 4 to 64 pairs', f'{length} tokens, {pairs} pairs'),
            Difference('learning rate', 'the best of several', '3e-3'),
            Difference('feed-forward layers', 'none', 'GELU, width 256'),
        ),
    )
