"""Gated feed-forward layers at equal parameters (Shazeer 2020, Table 1).

    transformer-jax ablate experiments/glu/feed_forward.py:small --root=runs/glu
    transformer-jax report runs/glu

The width of each layer is solved so that its parameters equal those of ReLU: a gate needs a third
matrix. `small`: tiny Shakespeare by characters, 2 layers of width 64; `cpu`: nanoGPT's setting for
a CPU. The text is `input.txt` in the current directory, or in DIR with
`--config.data.source_dir=DIR`.

Expected: GEGLU and SwiGLU have a lower loss than ReLU and GELU.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
LAYERS = {'ReLU': 'relu', 'GELU': 'gelu', 'SwiGLU': 'swiglu', 'GEGLU': 'geglu'}


def get_experiment(scale='small'):
    """Compare feed-forward layers; `scale`: small or cpu."""
    loss = Metric('loss', 'validation', 'last')
    return Experiment(
        claim='gated feed-forward layers have a lower loss at equal parameters',
        base=config_file(at_scale(scale, CONFIGS)),
        variants={name: {'model.ffn': ffn} for name, ffn in LAYERS.items()},
        metrics=(loss,),
        match='params',
        seeds=5,
        claims=tuple(
            Claim(
                f'{name} has a lower loss than ReLU at equal parameters',
                metric=str(loss),
                variant=name,
                source='Shazeer (2020), Table 1',
                doubt='the other sign at the size of the paper, or with a tuned learning rate',
            )
            for name in ('SwiGLU', 'GEGLU')
        ),
        differences=(
            Difference('data', 'C4, filling in spans (T5)', 'tiny Shakespeare, next character'),
            Difference(
                'model',
                'encoder and decoder of 12 layers of width 768',
                'decoder alone, 2 to 4 layers of width 64 to 128',
            ),
        ),
    )
