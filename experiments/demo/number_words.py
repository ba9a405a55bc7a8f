"""The smallest example of an experiment file: a tiny Transformer that learns number words.

    transformer-jax ablate experiments/demo/number_words.py --root=runs/demo_ablation
    transformer-jax report runs/demo_ablation

Four variants × three seeds of 100 steps, two minutes on 2 CPU cores.

Expected: without dropout more than twice as many held-out numbers are right, with one head fewer
than half; positions do not help after so few steps.
"""

from transformer_jax.ablation import Difference, Experiment, Metric, at_scale, config_file


def get_experiment(scale='small'):
    """Vary a tiny model; `scale`: small (100 steps) or longer (600)."""
    base = config_file('configs/number_words.py:en-de')
    base.update_from_flattened_dict(
        {
            'data.batching': 'buckets(lengths=(24,))',
            'data.task': 'number_words(limit=1000, held_out=100)',
            'data.vocab_size': 120,
            'model.encoder_layers': 1,
            'model.decoder_layers': 1,
            'model.d_model': 32,
            'model.d_ff': 64,
            'model.num_heads': 4,
            'train.steps': at_scale(scale, {'small': 100, 'longer': 600}),
            'train.batch_tokens': 1536,
            'optim.schedule': 'linear(warmup=20)',
            'optim.learning_rate': 1e-2,
            'evaluate.every': 0,
            'checkpoint.every': 20,
            'checkpoint.keep': 1,
            'checkpoint.average': 1,
            'decode.method': 'greedy',
        }
    )
    return Experiment(
        claim=(
            'In 100 steps dropout and a single head hold a tiny Transformer back, a lack of '
            'positions does not.'
        ),
        base=base,
        variants={
            'base': {},
            'no positions': {'model.position': 'none'},
            'one head': {'model.num_heads': 1},
            'no dropout': {'model.dropout': 0.0},
        },
        metrics=(Metric('exact_match'), Metric('bleu'), Metric('loss')),
        seeds=3,
        differences=(
            Difference(
                'table', 'no published table is reproduced', 'the smallest example of a table'
            ),
        ),
    )
