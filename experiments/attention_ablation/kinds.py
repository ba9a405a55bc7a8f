"""All kinds of attention at equal parameters, on tiny Shakespeare and on Multi30k.

    transformer-jax ablate experiments/attention_ablation/kinds.py:small --root=runs/kinds
    transformer-jax report runs/kinds

`shakespeare`: nanoGPT's CPU setting of 2,000 steps. `small`: the same with 2 layers of width 64 and
1,000 steps. `multi30k`: the self-attention of encoder and decoder of Transformer-Tiny (kinds that
no decoder can have are in the encoder only). The text of Shakespeare is `input.txt` in the current
directory, or in DIR with `--config.data.source_dir=DIR`, see README.md. The feed-forward width of
each variant is solved so that its non-embedding parameters equal those of softmax attention.
"""

from transformer_jax.ablation import Difference, Experiment, Metric, at_scale, config_file

CONFIGS = {
    'small': 'configs/tiny_shakespeare.py:small',
    'shakespeare': 'configs/tiny_shakespeare.py:cpu',
    'multi30k': 'configs/multi30k.py:en-de',
}
KINDS = {
    'softmax': 'softmax',
    'QK norm': 'softmax(qk_norm=True)',
    'softcap': 'softmax(softcap=20.0)',
    'talking heads': "softmax(talking='both')",
    'off by one': 'softmax(normalizer=off_by_one)',
    'sigmoid': 'softmax(normalizer=sigmoid)',
    'sparsemax': 'softmax(normalizer=sparsemax)',
    'entmax': 'softmax(normalizer=entmax15)',
    'relu²': 'softmax(normalizer=relu2)',
    'output gate': "softmax(gate='element')",
    'forget gate': 'softmax(forget=True)',
    'window 16': 'softmax(mask=window(16))',
    'additive': 'additive',
    'differential': 'differential',
    'latent': 'latent',
    'synthesizer': 'synthesizer',
    'linear': 'linear',
    'linear, gated decay': 'linear(decay=gated)',
}
ENCODER_ONLY = {
    'linformer': 'linformer(length=128, rank=32)',
    'reformer': 'reformer(chunk=16)',
    'sinkhorn': 'sinkhorn(block=16)',
}


def get_experiment(scale='small'):
    """Compare all kinds; `scale`: small, shakespeare or multi30k."""
    base = config_file(at_scale(scale, CONFIGS))
    variants = {name: {'model.attention': kind} for name, kind in KINDS.items()}
    if scale == 'multi30k':
        causal_only = ('forget gate', 'linear, gated decay')
        variants = {
            name: {
                'model.decoder_attention' if name in causal_only else 'model.attention': kind,
                'model.cross_attention': 'softmax',
            }
            for name, kind in KINDS.items()
        }
        variants |= {name: {'model.encoder_attention': kind} for name, kind in ENCODER_ONLY.items()}
    metrics = (
        (Metric('bleu', checkpoint='avg:10'),)
        if scale == 'multi30k'
        else (Metric('loss', 'validation', 'last'),)
    )
    return Experiment(
        claim=(
            'at equal parameters most variants of attention cannot be told from softmax attention'
        ),
        base=base,
        variants=variants,
        metrics=metrics,
        match='params',
        differences=_differences(scale),
        seeds=3,
    )


def _differences(scale):
    table = Difference(
        'table',
        "no published table is reproduced; each kind's paper has a model and data of its own",
        'all kinds in one model, at equal non-embedding parameters',
    )
    loss = Difference(
        'validation loss (of nanoGPT)',
        'estimated from 20 random batches',
        'over the whole validation text',
    )
    smaller = (
        Difference('model (of nanoGPT)', '4 layers of width 128', '2 layers of width 64'),
        Difference('training (of nanoGPT)', '2,000 steps', '1,000 steps'),
    )
    more = {'small': (loss, *smaller), 'shakespeare': (loss,), 'multi30k': ()}
    return (table, *more[scale])
