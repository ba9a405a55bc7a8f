"""The table of commands: what may stand after `transformer-jax`, one row each."""

from transformer_jax.cli.ablate import define_ablate, run_ablate
from transformer_jax.cli.bench import (
    define_bench_attention,
    define_bench_decode,
    define_bench_train,
    run_bench_attention,
    run_bench_decode,
    run_bench_train,
)
from transformer_jax.cli.decode import (
    define_attention,
    define_classify,
    define_generate,
    define_translate,
    run_attention,
    run_classify,
    run_generate,
    run_translate,
)
from transformer_jax.cli.evaluate import define_evaluate, run_evaluate
from transformer_jax.cli.flags import Command
from transformer_jax.cli.inspect import define_inspect, run_inspect
from transformer_jax.cli.probe import define_probe, run_probe
from transformer_jax.cli.report import define_report, run_report
from transformer_jax.cli.train import define_train, run_train

COMMANDS = {
    'train': Command(
        'Train a model, or resume the run of a workdir.',
        define_train,
        run_train,
        'transformer-jax train --config=configs/number_words.py:en-de --workdir=runs/w',
    ),
    'evaluate': Command(
        'Score a trained model on a split.',
        define_evaluate,
        run_evaluate,
        'transformer-jax evaluate --workdir=runs/w --checkpoint=avg:3',
    ),
    'translate': Command(
        'Translate the lines of standard input.',
        define_translate,
        run_translate,
        'transformer-jax translate --workdir=runs/w < in.txt > out.txt',
    ),
    'generate': Command(
        'Continue a text with a language model.',
        define_generate,
        run_generate,
        "transformer-jax generate --workdir=runs/w --prompt='To be' --max_tokens=100",
    ),
    'classify': Command(
        'Print the class of each line of standard input.',
        define_classify,
        run_classify,
        'transformer-jax classify --workdir=runs/w < in.txt > classes.txt',
    ),
    'attention': Command(
        'Draw the attention weights of every layer and head.',
        define_attention,
        run_attention,
        "transformer-jax attention --workdir=runs/w --text='twenty-four' --out=heads.png",
    ),
    'probe': Command(
        'Measure entropy, distance, sink and the scores of every head.',
        define_probe,
        run_probe,
        'transformer-jax probe --workdir=runs/w --all_checkpoints',
    ),
    'inspect': Command(
        'Print parameters, FLOPs, memory and shardings of a config, or the state of a workdir.',
        define_inspect,
        run_inspect,
        'transformer-jax inspect --config=configs/wmt14.py:en-de,base --devices=8',
    ),
    'ablate': Command(
        'Train what is missing of an experiment: its variants, with several seeds.',
        define_ablate,
        run_ablate,
        'transformer-jax ablate experiments/demo/number_words.py --root=runs/demo --dry_run',
        'experiment',
    ),
    'report': Command(
        'Write the results of an ablation: tables, tests, figures, curves.',
        define_report,
        run_report,
        'transformer-jax report runs/demo',
        'results',
    ),
    'bench train': Command(
        'Time training steps and their parts.',
        define_bench_train,
        run_bench_train,
        'transformer-jax bench train --config=configs/number_words.py:en-de',
    ),
    'bench decode': Command(
        'Time decoding against the length of its output.',
        define_bench_decode,
        run_bench_decode,
        'transformer-jax bench decode --config=configs/number_words.py:en-de',
    ),
    'bench attention': Command(
        'Measure time and memory of kinds of attention against the sequence length.',
        define_bench_attention,
        run_bench_attention,
        "transformer-jax bench attention --attention='softmax; linear' --lengths=256,512",
    ),
}
