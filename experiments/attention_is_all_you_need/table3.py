"""Table 3 of Vaswani et al. (2017): variations on the Transformer.

    transformer-jax ablate experiments/attention_is_all_you_need/table3.py:multi30k --root=runs/t3
    transformer-jax report runs/t3

`wmt14` is the paper's own setting: base with 100,000 steps, newstest2013, and big with 300,000
(half a day a row on 8 P100; not run). `multi30k` keeps the proportions on Transformer-Tiny (Wu et
al. 2021): each row changes the base's width, depth, heads, dropout or smoothing by the paper's
factors, as nearly as whole numbers allow (an eighth of 4 heads is one, a third of 4 layers is one).
`small` is `configs/multi30k_cpu.py:en-de,small`, 3 layers of width 64 with 8 heads, for 2 CPU
cores.

Expected at `wmt14`: the paper's numbers within 0.3 BLEU. At the other scales directions only: one
head and too many heads are worse, small keys hurt, larger is better as long as dropout prevents
overfitting, dropout matters, sinusoids equal learned positions.
"""

from transformer_jax.ablation import (
    Claim,
    Difference,
    Experiment,
    Metric,
    Published,
    at_scale,
    config_file,
)

# Row -> (perplexity per word piece, BLEU on newstest2013).
PAPER = {
    'base': (4.92, 25.8),
    'A heads 1/8': (5.29, 24.9),
    'A heads 1/2': (5.00, 25.5),
    'A heads 2': (4.91, 25.8),
    'A heads 4': (5.01, 25.4),
    'B d_k 1/4': (5.16, 25.1),
    'B d_k 1/2': (5.01, 25.4),
    'C layers 1/3': (6.11, 23.7),
    'C layers 2/3': (5.19, 25.3),
    'C layers 4/3': (4.88, 25.5),
    'C width 1/2': (5.75, 24.5),
    'C width 2': (4.66, 26.0),
    'C d_ff 1/2': (5.12, 25.4),
    'C d_ff 2': (4.75, 26.2),
    'D dropout 0': (5.77, 24.6),
    'D dropout + 0.1': (4.95, 25.5),
    'D smoothing 0': (4.67, 25.3),
    'D smoothing 0.2': (5.47, 25.7),
    'E learned positions': (4.92, 25.7),
}
CONFIGS = {
    'small': 'configs/multi30k_cpu.py:en-de,small',
    'multi30k': 'configs/multi30k.py:en-de',
    'wmt14': 'configs/wmt14.py:en-de,base',
}


def get_experiment(scale='small'):
    """Vary the base model; `scale`: small, multi30k or wmt14."""
    base = config_file(at_scale(scale, CONFIGS))
    rows = _rows(base.model, base.train.label_smoothing)
    published = dict(PAPER)
    if scale == 'wmt14':
        rows['big'] = {
            'model.d_model': 1024,
            'model.d_ff': 4096,
            'model.num_heads': 16,
            'model.dropout': 0.3,
            'train.steps': 300_000,
        }
        published['big'] = 4.33, 26.4
    # Section 6.2: "no checkpoint averaging" in this table.
    checkpoint = {'small': 'last', 'multi30k': 'avg:10', 'wmt14': 'last'}[scale]
    split = 'validation' if scale == 'wmt14' else 'test'
    metrics = tuple(Metric(name, split, checkpoint) for name in ('bleu', 'perplexity'))
    source, values = 'Vaswani et al. (2017), Table 3', list(zip(*published.values(), strict=True))
    perplexity, bleu = (dict(zip(published, column, strict=True)) for column in values)
    return Experiment(
        claim='heads, key size, depth, width and dropout each matter; learned positions do not',
        base=base,
        variants=rows,
        metrics=metrics,
        seeds=3,
        claims=_claims(str(metrics[0])),
        differences=_differences(scale),
        published=(
            Published(source, 'BLEU, newstest2013', str(metrics[0]), bleu),
            Published(
                source,
                'perplexity, newstest2013',
                str(metrics[1]),
                perplexity,
                lower_is_better=True,
            ),
        ),
    )


def _claims(bleu):
    said = {
        'B d_k 1/4': ('small keys hurt', 'worse'),
        'C width 2': ('a wider model is better', 'better'),
        'C layers 1/3': ('fewer layers are worse', 'worse'),
        'A heads 1/8': ('a single head is worse', 'worse'),
        'D dropout 0': ('without dropout BLEU is lower', 'worse'),
    }
    claims = [
        Claim(
            text,
            metric=bleu,
            variant=variant,
            direction=direction,
            source=f'Vaswani et al. (2017), Table 3 ({variant[0]})',
            doubt='the other sign after training until nothing improves',
        )
        for variant, (text, direction) in said.items()
    ]
    learned = Claim(
        'learned positions are as good as sinusoids',
        metric=bleu,
        variant='E learned positions',
        direction='equal',
        margin=1.0,
        source='Vaswani et al. (2017), Table 3 (E)',
        doubt='a difference of more than 1 BLEU after training until nothing improves',
    )
    return (*claims, learned)


def _differences(scale):
    if scale == 'wmt14':
        return (
            Difference(
                'batches',
                'about 25,000 source and 25,000 target tokens (section 5.1)',
                '25,600 target tokens, padding included, in packed rows of 256',
            ),
        )
    small = scale == 'small'
    return (
        Difference(
            'data',
            'WMT 2014 English to German, scored on newstest2013',
            'Multi30k captions (29,000 pairs), lower-cased and tokenized, scored on test2016',
        ),
        Difference('vocabulary', '37,000 pieces', f'{"2,000" if small else "10,000"} pieces'),
        Difference(
            'base model',
            '6 layers of width 512, d_ff 2,048, 8 heads',
            '3 layers of width 64, d_ff 128, 8 heads'
            if small
            else '4 layers of width 128, d_ff 256, 4 heads (Transformer-Tiny, Wu et al. 2021)',
        ),
        Difference(
            'training',
            '100,000 steps of about 25,000 target tokens',
            '2,000 steps of 800 target tokens'
            if small
            else 'up to 8,000 steps of up to 8,192 target tokens, patience 10',
        ),
        Difference(
            'rows',
            'absolute sizes, such as 1, 4, 16 and 32 heads',
            "the paper's factors of our base, as nearly as whole numbers allow",
        ),
        Difference(
            'decoding', 'beam 4, length penalty 0.6', f'beam {1 if small else 5}, length penalty 1'
        ),
        Difference(
            'checkpoint', 'no averaging', 'the last one' if small else 'the average of the last 10'
        ),
    )


def _rows(model, smoothing):
    """Return the rows as changes of a base model, by the paper's factors."""
    heads, layers, width, d_ff = model.num_heads, model.encoder_layers, model.d_model, model.d_ff
    d_k = width // heads

    def with_heads(number):
        return {'model.num_heads': number, 'model.head_dim': width // number}

    def with_layers(share):
        number = max(1, round(share * layers))
        return {'model.encoder_layers': number, 'model.decoder_layers': number}

    def with_width(factor):
        # As in the paper: 256 has heads of 32 and 1024 heads of 128.
        return {'model.d_model': int(factor * width), 'model.head_dim': int(factor * d_k)}

    return {
        'base': {},
        'A heads 1/8': with_heads(max(1, heads // 8)),
        'A heads 1/2': with_heads(heads // 2),
        'A heads 2': with_heads(2 * heads),
        'A heads 4': with_heads(4 * heads),
        'B d_k 1/4': {'model.head_dim': d_k // 4, 'model.value_dim': d_k},
        'B d_k 1/2': {'model.head_dim': d_k // 2, 'model.value_dim': d_k},
        'C layers 1/3': with_layers(1 / 3),
        'C layers 2/3': with_layers(2 / 3),
        'C layers 4/3': with_layers(4 / 3),
        'C width 1/2': with_width(0.5),
        'C width 2': with_width(2),
        'C d_ff 1/2': {'model.d_ff': d_ff // 2},
        'C d_ff 2': {'model.d_ff': 2 * d_ff},
        'D dropout 0': {'model.dropout': 0.0},
        'D dropout + 0.1': {'model.dropout': model.dropout + 0.1},
        'D smoothing 0': {'train.label_smoothing': 0.0},
        'D smoothing 0.2': {'train.label_smoothing': 2 * smoothing},
        'E learned positions': {'model.position': 'learned(max_len=512)'},
    }
