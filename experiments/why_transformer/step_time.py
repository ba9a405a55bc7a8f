"""Time of a training step over sequence length: one token after another, or all at once.

    transformer-jax ablate experiments/why_transformer/step_time.py:small --root=runs/step_time
    transformer-jax report runs/step_time

Every step has the same number of tokens, so that only the order of computation differs: a recurrent
model computes the tokens of a row one after another. On a CPU, which computes little at once, the
difference is small; on an accelerator it is the reason for the Transformer (Vaswani et al. 2017,
section 1).
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

MODELS = {
    'LSTM + attention': {'model.kind': 'rnn_seq2seq', 'model.rnn': "lstm(attention='additive')"},
    'GRU + attention': {'model.kind': 'rnn_seq2seq', 'model.rnn': "gru(attention='additive')"},
    'Transformer': {'model.kind': 'encoder_decoder'},
}
SCALES = {'small': ((16, 64, 256), 4096, 128), 'long': ((64, 256, 1024, 4096), 65_536, 512)}


def get_experiment(scale='small'):
    """Vary the length of a row; `scale`: small, or long (for an accelerator)."""
    lengths, tokens, width = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:copy(length={lengths[0]}, test_length={lengths[0]})')
    base.model.d_model = width
    base.model.d_ff = 4 * width
    base.train.steps = 30
    base.train.log_every = 5
    base.train.batch_tokens = tokens
    base.evaluate.every = 0
    variants, points = {}, {}
    for length in lengths:
        for name, changes in MODELS.items():
            row = f'{name} at {length}'
            points[row] = name, length
            variants[row] = changes | {
                'data.task': f'copy(length={length}, test_length={length})',
                'data.batching': f'buckets(lengths=({length + 1},))',
                'evaluate.batch_tokens': tokens,
            }
    return Experiment(
        claim=(
            'a recurrent step takes time in the length of the sequence, a Transformer step does not'
        ),
        base=base,
        variants=variants,
        metrics=(Metric('step_seconds'),),
        reference='Transformer',
        axis=Axis('tokens in a row', points),
        claims=tuple(
            Claim(
                f'the step of the {cell} grows faster with the length than that of the Transformer',
                metric='step_seconds',
                variant=f'{cell} + attention',
                against='Transformer',
                direction='worse',
                over='slope',
                source='Vaswani et al. (2017), Table 1',
                doubt='a device that runs the steps of a recurrent model as fast as one product',
            )
            for cell in ('LSTM', 'GRU')
        ),
        differences=(
            Difference(
                'evidence',
                'Vaswani et al. (2017), section 1, state it without a measurement',
                f'measured steps of {tokens:,} tokens, models of width {width}',
            ),
        ),
    )
