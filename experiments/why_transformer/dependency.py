"""Accuracy over the distance of a dependency, for recurrent models and the Transformer.

    transformer-jax ablate experiments/why_transformer/dependency.py:small --root=runs/dependency
    transformer-jax report runs/dependency

The source is noise around one marked symbol, `distance` tokens from either end; the target is that
symbol. A recurrent model without attention has one vector to carry it in; with attention (Bahdanau
et al. 2015) and in the Transformer every symbol is one step away. Each distance has a model of its
own.

Expected: the accuracy of the LSTM without attention falls with the distance, that of the other two
does not.
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
    'LSTM': {'model.kind': 'rnn_seq2seq', 'model.rnn': "lstm(attention='none')"},
    'LSTM + attention': {'model.kind': 'rnn_seq2seq', 'model.rnn': "lstm(attention='additive')"},
    'Transformer': {'model.kind': 'encoder_decoder', 'model.encoder_layers': 2},
}
SCALES = {'small': ((5, 10, 15, 20), 3000), 'long': ((10, 30, 100, 300, 1000), 5000)}
ROWS = 32


def get_experiment(scale='small'):
    """Vary the distance; `scale`: small, or long (up to 1,000 tokens back, for a GPU)."""
    distances, steps = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:dependency(distance={distances[0]})')
    base.model.d_model = 32 if scale == 'small' else 128
    base.model.encoder_layers = 1
    base.model.decoder_layers = 1
    base.train.steps = steps
    base.optim.learning_rate = 2e-3
    base.evaluate.every = steps // 4
    variants = {
        f'{name} at {distance}': changes
        | {
            'data.task': f'dependency(distance={distance})',
            'data.batching': f'buckets(lengths=({2 * distance + 3},))',
            'train.batch_tokens': ROWS * (2 * distance + 3),
            'evaluate.batch_tokens': 8 * ROWS * (2 * distance + 3),
        }
        for distance in distances
        for name, changes in MODELS.items()
    }
    points = {
        f'{name} at {distance}': (name, distance) for distance in distances for name in MODELS
    }
    return Experiment(
        claim='recurrent models lose distant dependencies; attention is a shortcut',
        base=base,
        variants=variants,
        metrics=(Metric('exact_match'),),
        seeds=3,
        reference='Transformer',
        axis=Axis('distance in tokens', points),
        claims=(
            Claim(
                'an LSTM without attention loses a distant symbol',
                metric='test exact_match',
                variant=f'LSTM at {distances[-1]}',
                direction='worse',
                source='Vaswani et al. (2017), section 1; Bahdanau et al. (2015)',
                doubt='an LSTM of the same size that finds the symbol after more steps',
            ),
            Claim(
                'with attention an LSTM keeps a distant symbol as well as the Transformer',
                metric='test exact_match',
                variant=f'LSTM + attention at {distances[-1]}',
                direction='equal',
                margin=0.05,
                source='Bahdanau et al. (2015)',
                doubt='a distance at which an LSTM with attention fails',
            ),
        ),
        differences=(
            Difference(
                'table',
                'no published table is reproduced; additive attention is that of Bahdanau et al. '
                '(2015), who translate sentences',
                'a generated task: one marked symbol in noise',
            ),
        ),
    )
