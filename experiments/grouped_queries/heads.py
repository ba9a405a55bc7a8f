"""Fewer heads of keys and values: MQA and GQA (Shazeer 2019; Ainslie et al. 2023, Figure 3).

    transformer-jax ablate experiments/grouped_queries/heads.py:small --root=runs/heads
    transformer-jax report runs/heads

Queries keep 4 heads; keys and values have 4 (MHA), 2 (GQA) or 1 (MQA). The feed-forward layers get
the parameters that this saves. `small`: tiny Shakespeare by characters, 2 layers of width 64;
`cpu`: nanoGPT's setting for a CPU. The text is `input.txt` in the current directory, or in DIR with
`--config.data.source_dir=DIR`. `transformer-jax bench decode` measures what it is for: the bytes
of the cache and the time of a token.

Expected: all are equal within 0.02 nats, 1% of the loss.
"""

from transformer_jax.ablation import Claim, Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {'small': 'configs/tiny_shakespeare.py:small', 'cpu': 'configs/tiny_shakespeare.py:cpu'}
HEADS = {'MHA': 4, 'GQA': 2, 'MQA': 1}
MARGIN = 0.02


def get_experiment(scale='small'):
    """Vary the heads of keys and values; `scale`: small or cpu."""
    loss = Metric('loss', 'validation', 'last')
    return Experiment(
        claim='fewer heads of keys and values cost no quality',
        base=config_file(at_scale(scale, CONFIGS)),
        variants={name: {'model.num_kv_heads': heads} for name, heads in HEADS.items()},
        metrics=(loss,),
        match='params',
        seeds=5,
        claims=tuple(
            Claim(
                f'{name} learns as well as MHA',
                metric=str(loss),
                variant=name,
                direction='equal',
                margin=MARGIN,
                source='Ainslie et al. (2023), Figure 3',
                doubt='a task that needs many keys of one place, such as recall of many pairs',
            )
            for name in ('GQA', 'MQA')
        ),
        differences=(
            Difference(
                'model', 'T5 Large and XXL', 'decoder alone, 2 to 4 layers of width 64 to 128'
            ),
            Difference(
                'training',
                'checkpoints of MHA, trained on with fewer heads',
                'all from the start, on tiny Shakespeare',
            ),
        ),
    )
