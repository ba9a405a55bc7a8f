"""Which position encodings work beyond the lengths of training (Kazemnejad et al. 2023).

Training has up to 20 symbols, the test up to 40.

    transformer-jax ablate experiments/length_generalization/copy.py:small --root=runs/lengths
    transformer-jax report runs/lengths

A decoder-only model copies, reverses, sorts or adds. `small`: copy with an alphabet of 10, 2
layers of width 64. `copy`, `reverse`, `sort` and `addition` are the full tasks with 12 layers of
width 768 as in the paper, for a GPU. Learned positions end with their table, so it is as long as
the longest test; its end is never trained. Accuracy is teacher-forced, per token of the answer.

The paper's numbers are mean reciprocal ranks over many tasks (Figure 1): none .69, T5 .55, ALiBi
.50, RoPE .33, sinusoidal .22.

Expected: roughly that order.
"""

from transformer_jax.ablation import (
    Claim,
    Difference,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
)

POSITIONS = {
    'none': 'none',
    'T5': 't5',
    'ALiBi': 'alibi',
    'RoPE': 'rope',
    'learned': 'learned(max_len=128)',
    'sinusoidal': 'sinusoidal',
    'Shaw': 'shaw',
    'Transformer-XL': 'transformer_xl',
    'KERPLE': 'kerple',
    'FIRE': 'fire',
    'CoPE': 'cope',
}
TASKS = {
    'small': 'copy(alphabet=10)',
    'copy': 'copy',
    'reverse': 'reverse',
    'sort': 'sort',
    'addition': 'addition',
}
# Of test examples, in tokens, question and answer together with their ends: up to 24, 30 and 40
# symbols, or digits.
LENGTHS, SUMS = (50, 62, 82), (76, 94, 124)


def get_experiment(scale='small'):
    """Compare positions; `scale`: small, or a full task: copy, reverse, sort, addition."""
    base = config_file(f'configs/generated.py:{at_scale(scale, TASKS)},decoder_only')
    if scale == 'small':
        base.train.steps = 1000
        base.evaluate.every = 500
    else:
        base.model.decoder_layers = 12
        base.model.d_model = 768
        base.model.d_ff = 3072
        base.model.num_heads = 12
        base.model.dropout = 0.1
        base.train.steps = 40_000
    return Experiment(
        claim='a decoder without position encoding generalises to longer sequences best',
        base=base,
        variants={name: {'model.position': position} for name, position in POSITIONS.items()},
        metrics=(
            Metric('accuracy'),
            *(
                Metric('exact_match', length=length)
                for length in (SUMS if scale == 'addition' else LENGTHS)
            ),
        ),
        published=(
            Published(
                'Kazemnejad et al. (2023), Figure 1',
                'mean reciprocal rank',
                'test accuracy',
                {'none': 0.69, 'T5': 0.55, 'ALiBi': 0.50, 'RoPE': 0.33, 'sinusoidal': 0.22},
            ),
        ),
        seeds=3,
        claims=tuple(
            Claim(
                f'without positions a decoder copies longer sequences better than with {name}',
                metric='test accuracy',
                variant=name,
                direction='worse',
                source='Kazemnejad et al. (2023), Figure 1',
                doubt='the other sign over many tasks, with 12 layers and 40,000 steps',
            )
            for name in ('sinusoidal', 'ALiBi', 'RoPE')
        ),
        differences=_differences(scale),
    )


def _differences(scale):
    always = (
        Difference(
            'measure',
            'mean reciprocal rank over many tasks (Figure 1)',
            'accuracy per token of the answer, teacher-forced, of one task',
        ),
    )
    if scale != 'small':
        return always
    return (
        *always,
        Difference('model', '12 layers of width 768', '2 layers of width 64'),
        Difference('tasks', 'many', 'copying, with an alphabet of 10'),
    )
