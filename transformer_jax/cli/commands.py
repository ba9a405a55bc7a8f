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
    'train': Command('Train a model, or resume the run of a workdir.', define_train, run_train),
    'evaluate': Command('Score a trained model on a split.', define_evaluate, run_evaluate),
    'translate': Command('Translate the lines of standard input.', define_translate, run_translate),
    'generate': Command('Continue a text with a language model.', define_generate, run_generate),
    'classify': Command(
        'Print the class of each line of standard input.', define_classify, run_classify
    ),
    'attention': Command(
        'Draw the attention weights of every layer and head.', define_attention, run_attention
    ),
    'probe': Command(
        'Measure entropy, distance, sink and largest score of every head.', define_probe, run_probe
    ),
    'inspect': Command(
        'Print parameters, FLOPs, memory and shardings of a config, or the state of a workdir.',
        define_inspect,
        run_inspect,
    ),
    'ablate': Command(
        'Train what is missing of an experiment: its variants, with several seeds.',
        define_ablate,
        run_ablate,
        'experiment',
    ),
    'report': Command(
        'Write the results of an ablation: tables, tests, figures, curves.',
        define_report,
        run_report,
        'results',
    ),
    'bench train': Command(
        'Time training steps and their parts.', define_bench_train, run_bench_train
    ),
    'bench decode': Command(
        'Time decoding against the length of its output.', define_bench_decode, run_bench_decode
    ),
    'bench attention': Command(
        'Measure time and memory of kinds of attention against the sequence length.',
        define_bench_attention,
        run_bench_attention,
    ),
}
