"""ListOps of Long Range Arena (Tay et al. 2021, Table 1): kinds of attention on nested operations.

    transformer-jax ablate experiments/long_range_arena/listops.py:small --root=runs/listops
    transformer-jax report runs/listops

`lra` is the published task (500 to 2,000 tokens) and the published model (see `configs/listops.py`), for a GPU.
`small`: up to 200 tokens at depth 5, 4 layers of 64. `speed`: 20 steps of the published task on whatever is there, for
step time and memory alone. The paper's speed and memory at 1K to 4K are measured by
`transformer-jax bench attention --lengths=1024,2048,3072,4096`.

Expected: full attention clearly above the largest class; the paper has 36.37 for it and 15.82 (local) to 37.27
(Reformer) for the others.
"""

from transformer_jax.experiment import Experiment, Metric, Published, at_scale, config_file

# Accuracy in percent.
PAPER = {'softmax': 36.37, 'local': 15.82, 'strided': 17.07, 'Longformer': 35.63, 'Linformer': 35.70, 'Reformer': 37.27,
         'Sinkhorn': 33.67, 'Synthesizer': 36.99, 'BigBird': 36.05, 'linear': 16.13, 'Performer': 18.01}
# Length of a row; of the window, of a block.
SCALES = {'small': (208, 16, 16), 'lra': (2016, 64, 32), 'speed': (2016, 64, 32)}


def get_experiment(scale='small'):
    """`scale`: small, lra, or speed."""
    length, window, block = at_scale(scale, SCALES)
    base = config_file('configs/listops.py:small' if scale == 'small' else 'configs/listops.py:lra')
    kinds = {
        'softmax': 'softmax',
        'local': f'softmax(mask=window({window}))',
        'strided': f'softmax(mask=strided({window}))',
        'Longformer': f'softmax(mask=window({window}) | first(4))',
        'BigBird': f'softmax(mask=bigbird(block={block}, length={length}))',
        'Linformer': f'linformer(length={length}, rank={4 * block})',
        'Reformer': f'reformer(buckets=8, chunk={block})',
        'Sinkhorn': f'sinkhorn(block={block})',
        'Synthesizer': f'synthesizer(max_len={length})',
        'linear': 'linear',
        'Performer': 'linear(feature=favor(features=256))',
    }
    variants = {name: {'model.attention': kind} for name, kind in kinds.items()}
    if scale == 'small':
        base.train.steps = 600
    if scale == 'speed':
        base.train.steps = 20
        base.train.batch_tokens = length  # one sequence a step
        base.train.log_every = 5
        base.evaluate.every = 0
        return Experiment(claim='at 2,000 tokens a step with a window or linear attention takes less time',
                          base=base, variants=variants, metrics=(Metric('step_seconds'),), seeds=1)
    return Experiment(
        claim='full attention is well above chance on ListOps; local and linear attention are not',
        base=base, variants=variants, metrics=(Metric('accuracy'),), seeds=3,
        published=(Published('Tay et al. (2021), Table 1', 'accuracy', 'test accuracy',
                             {name: round(value / 100, 4) for name, value in PAPER.items()}),))
