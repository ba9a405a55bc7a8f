"""Longer texts than those of training (Press et al. 2022, Figure 1).

    transformer-jax ablate experiments/extrapolation/lengths.py:small --root=runs/extrapolation
    transformer-jax report runs/extrapolation

Language models that read 64 characters in training are scored on windows of 64 to 512. `small`:
tiny Shakespeare by characters, 2 layers of width 64; `cpu`: nanoGPT's setting for a CPU. The text
is `input.txt` in the current directory, or in DIR with `--config.data.source_dir=DIR`.

Expected: with sinusoidal positions and RoPE the loss grows beyond 64 characters; with biases that
fall with distance, and with a forget gate in place of positions (Lin et al. 2025), it does not.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
POSITIONS = {
    'sinusoidal': 'sinusoidal',
    'RoPE': 'rope',
    'none': 'none',
    'ALiBi': 'alibi',
    'T5': 't5',
    'KERPLE': 'kerple',
    'FIRE': 'fire',
}
LENGTHS = (64, 128, 256, 512)
PRESS = 'Press et al. (2022), Figure 1'


def get_experiment(scale='small'):
    """Compare positions; `scale`: small or cpu."""
    metrics = tuple(Metric('loss', 'validation', 'last', length=length) for length in LENGTHS)
    longest = str(metrics[-1])
    variants = {name: {'model.position': position} for name, position in POSITIONS.items()}
    variants['forget gate'] = {
        'model.position': 'none',
        'model.attention': 'softmax(forget=True)',
    }
    return Experiment(
        claim='a bias that falls with distance reads longer texts than those of training',
        base=config_file(at_scale(scale, CONFIGS)),
        variants=variants,
        metrics=metrics,
        seeds=5,
        claims=(
            Claim(
                'ALiBi reads 8 times its training length better than sinusoidal positions',
                metric=longest,
                variant='ALiBi',
                source=PRESS,
                doubt='sinusoids that keep their loss at 8 times the length, at any size',
            ),
            Claim(
                'ALiBi reads 8 times its training length better than RoPE',
                metric=longest,
                variant='ALiBi',
                against='RoPE',
                source=PRESS,
                doubt='RoPE that keeps its loss at 8 times the length, its base unchanged',
            ),
            Claim(
                'a forget gate without positions reads longer texts better than RoPE',
                metric=longest,
                variant='forget gate',
                against='RoPE',
                source='Lin et al. (2025), Figure 3',
                doubt='RoPE that keeps its loss at 8 times the length, its base unchanged',
            ),
        ),
        differences=(
            Difference('data', 'WikiText-103, words', 'tiny Shakespeare, characters'),
            Difference('model', '16 layers of width 1,024', '2 to 4 layers of width 64 to 128'),
            Difference('lengths', '512 in training, up to 15,512 read', '64, up to 512 read'),
        ),
    )
