"""The time of a decoded token over the length (Katharopoulos et al. 2020, Table 1).

    transformer-jax ablate experiments/linear_decoding/time.py:small --root=runs/decoding
    transformer-jax report runs/decoding

Softmax attention reads all earlier keys for each token, linear attention a state of constant size.
Nothing is trained: the time of a token does not depend on the parameters.

Expected: the time of a token grows with the length for softmax attention, and not for linear
attention.
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

KINDS = {'softmax': 'softmax', 'window 64': 'softmax(mask=window(64))', 'linear': 'linear'}
# Scale -> (lengths, width, layers, heads).
SCALES = {
    'small': ((128, 512, 2048), 128, 2, 4),
    'paper': ((784, 3072), 256, 8, 8),
}


def get_experiment(scale='small'):
    """Vary the length; `scale`: small, or paper (images of MNIST and CIFAR-10)."""
    lengths, width, layers, heads = at_scale(scale, SCALES)
    base = config_file(f'configs/generated.py:{_task(lengths[0])}')
    base.model.d_model = width
    base.model.d_ff = 4 * width
    base.model.decoder_layers = layers
    base.model.num_heads = heads
    base.train.steps = 0
    base.evaluate.every = 0
    variants, points = {}, {}
    for length in lengths:
        for name, kind in KINDS.items():
            row = f'{name} at {length}'
            points[row] = name, length
            variants[row] = {
                'model.attention': kind,
                'data.task': _task(length),
                'data.batching': f'buckets(lengths=({length},))',
                'train.batch_tokens': 8 * length,
                'evaluate.batch_tokens': 8 * length,
            }
    seconds = Metric('decode_seconds')
    return Experiment(
        claim='linear attention decodes in constant time per token',
        base=base,
        variants=variants,
        metrics=(seconds,),
        reference='softmax',
        axis=Axis('tokens', points),
        seeds=5,
        claims=(
            Claim(
                'the time of a token grows less with the length for linear attention',
                metric=str(seconds),
                variant='linear',
                against='softmax',
                over='slope',
                source='Katharopoulos et al. (2020), Table 1',
                doubt='a device on which reading the keys costs nothing beside the rest of a step',
            ),
        ),
        differences=(
            Difference('measured', 'images per second', 'seconds for a token of each row'),
            Difference('rows', 'as many as fit into the memory', '16'),
        ),
    )


def _task(length):
    return f'induction(length={length}, test_length={length})'
