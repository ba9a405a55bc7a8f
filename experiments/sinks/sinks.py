"""Attention sinks, and what removes them (Xiao et al. 2023; Gu et al. 2024).

    transformer-jax ablate experiments/sinks/sinks.py:small --root=runs/sinks
    transformer-jax report runs/sinks

Softmax must give its weight to some key, and a head with nothing to look up gives it to the first.
The column `sink` is the mean weight on the first token of a row, over all heads. What may give the
weight to nothing: one more key with the logit 0 (off by one, Miller 2023), or with a learned logit
(gpt-oss); a gate on the output (Qiu et al. 2025) may close instead. `small`: tiny Shakespeare by
characters, 2 layers of width 64; `cpu`: nanoGPT's setting for a CPU. The text is `input.txt` in the
current directory, or in DIR with `--config.data.source_dir=DIR`.

`small` is too small to decide it: after 1,000 steps softmax gives the first token 0.06 of the
weight, and equal weights for all keys would give it 0.074, so there is no sink to remove
(2026-12-01).

Expected: less weight on the first token, at an equal loss (within 0.02 nats, 1%).
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
KINDS = {
    'softmax': 'softmax',
    'off by one': 'softmax(normalizer=off_by_one)',
    'learned sink': 'softmax(normalizer=sink)',
    'output gate': "softmax(gate='element')",
}
OTHERS = ('off by one', 'learned sink')
MARGIN = 0.02


def get_experiment(scale='small'):
    """Compare normalizers and the gate; `scale`: small or cpu."""
    loss, sink = Metric('loss', 'validation', 'last'), Metric('sink', 'validation', 'last')
    return Experiment(
        claim='a learned sink, off by one or a gate removes the attention sink at equal quality',
        base=config_file(at_scale(scale, CONFIGS)),
        variants={name: {'model.attention': kind} for name, kind in KINDS.items()},
        metrics=(sink, loss),
        match='params',
        seeds=5,
        claims=(
            Claim(
                'another place for the weight takes it from the first token',
                metric=str(sink),
                variant=OTHERS,
                source='Xiao et al. (2023), section 3.3; gpt-oss (2025)',
                doubt='a large model whose first token keeps its weight beside a learned sink',
            ),
            Claim(
                'an output gate takes weight from the first token',
                metric=str(sink),
                variant='output gate',
                source='Qiu et al. (2025), Figure 2',
                doubt='a large model whose first token keeps its weight under a gate',
            ),
            Claim(
                'without the sink the loss is equal',
                metric=str(loss),
                variant=OTHERS,
                direction='equal',
                margin=MARGIN,
                source='Xiao et al. (2023), Table 3',
                doubt='a difference that grows with the model or with training',
            ),
        ),
        differences=(
            Difference(
                'model',
                '160 million parameters and more, the Pile',
                '2 to 4 layers of width 64 to 128, tiny Shakespeare',
            ),
            Difference(
                'first token',
                'the begin of a text',
                'any character of the text: rows are windows of it',
            ),
        ),
    )
