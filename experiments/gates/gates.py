"""Gates and other normalizers than softmax, in a language model.

    transformer-jax ablate experiments/gates/gates.py:small --root=runs/gates
    transformer-jax report runs/gates

- an output gate lowers the loss (Qiu et al. 2025, "Gated attention", Table 1)
- a forget gate lowers the loss (Lin et al. 2025, "Forgetting Transformer", Figure 2)
- sigmoid attention learns as well as softmax (Ramapuram et al. 2024, Figure 1)

All at equal parameters. `small`: tiny Shakespeare by characters, 2 layers of width 64; `cpu`:
nanoGPT's setting for a CPU. The text is `input.txt` in the current directory, or in DIR with
`--config.data.source_dir=DIR`. The margin of equality, 0.02 nats, is about 1% of the loss.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
KINDS = {
    'softmax': 'softmax',
    'output gate': "softmax(gate='element')",
    'forget gate': 'softmax(forget=True)',
    'sigmoid': 'softmax(normalizer=sigmoid)',
}
MARGIN = 0.02
DOUBT = 'another sign after training so long that the speed of learning no longer counts'


def get_experiment(scale='small'):
    """Compare gates; `scale`: small or cpu."""
    loss = Metric('loss', 'validation', 'last')
    label = str(loss)
    return Experiment(
        claim='gates lower the loss at equal parameters, and sigmoid attention equals softmax',
        base=config_file(at_scale(scale, CONFIGS)),
        variants={name: {'model.attention': kind} for name, kind in KINDS.items()},
        metrics=(loss,),
        match='params',
        seeds=5,
        claims=(
            Claim(
                'an output gate lowers the loss',
                metric=label,
                variant='output gate',
                source='Qiu et al. (2025), Table 1',
                doubt=DOUBT,
            ),
            Claim(
                'a forget gate lowers the loss',
                metric=label,
                variant='forget gate',
                source='Lin et al. (2025), Figure 2',
                doubt=DOUBT,
            ),
            Claim(
                'sigmoid attention learns as well as softmax',
                metric=label,
                variant='sigmoid',
                direction='equal',
                margin=MARGIN,
                source='Ramapuram et al. (2024), Figure 1',
                doubt=DOUBT,
            ),
        ),
        differences=(
            Difference(
                'size',
                'up to 15 billion parameters and 3.5 trillion tokens (Qiu et al. 2025)',
                '2 to 4 layers of width 64 to 128, a million characters',
            ),
        ),
    )
