"""What each word after `transformer-jax` takes and does: one row of COMMANDS."""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from transformer_jax.cli.ablate import define_ablate, run_ablate
from transformer_jax.cli.probe import define_probe, run_probe
from transformer_jax.cli.report import define_report, run_report
from transformer_jax.config import from_config_dict
from transformer_jax.errors import ConfigError
from transformer_jax.schema import ExperimentConfig

Flags = flags.FlagValues


class Command(NamedTuple):
    """One word after `transformer-jax`, or two."""

    help: str
    define: Callable[[Flags], None]
    run: Callable[[Flags], None]
    argument: str = ''  # the flag that a word without dashes stands for


def log(message: str) -> None:
    """Remarks go to standard error, from the first process alone; standard output is
    for results.
    """
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def _config(values: Flags) -> ExperimentConfig:
    if not values['config'].present:
        raise ConfigError(
            '--config is missing: give a file of configs/, as in --config=configs/number_words.py:en-de'
        )
    if not isinstance(values.config, ml_collections.ConfigDict):
        raise ConfigError(
            f'--config: get_config returned {type(values.config).__name__}, not a ConfigDict'
        )
    return from_config_dict(values.config)


def _required(values: Flags, name: str) -> Any:
    if not values[name].value:
        raise ConfigError(f'--{name} is missing')
    return values[name].value


def _define_config(values: Flags) -> None:
    config_flags.DEFINE_config_file(
        'config',
        None,
        'The experiment: FILE.py[:ARG]; override with --config.KEY=VALUE.',
        flag_values=values,
    )


def _define_workdir(values: Flags) -> None:
    flags.DEFINE_string('workdir', '', 'The directory that holds all of a run.', flag_values=values)


def _define_train(values: Flags) -> None:
    _define_config(values)
    _define_workdir(values)
    flags.DEFINE_bool(
        'distributed',
        False,
        "One process of many, as the cluster's environment says (SLURM, TPU, …).",
        flag_values=values,
    )
    flags.DEFINE_string(
        'coordinator', '', 'One process of many: HOST:PORT of process 0.', flag_values=values
    )
    flags.DEFINE_integer(
        'num_processes', 1, 'How many processes, with --coordinator.', 1, flag_values=values
    )
    flags.DEFINE_integer(
        'process_id', 0, 'Which of them, with --coordinator.', 0, flag_values=values
    )


def _train(values: Flags) -> None:
    config, workdir = _config(values), _required(values, 'workdir')
    from transformer_jax.training.train import train

    best = train(config, workdir, log)
    log(
        f'done: {workdir}'
        + (f'; best {best["metric"]} {best["value"]:.4f} at step {best["step"]}' if best else '')
    )


def _define_trained(values: Flags) -> None:
    _define_workdir(values)
    flags.DEFINE_string(
        'checkpoint',
        '',
        'best, last, avg:N or a step; by default the best, or the last where none was evaluated.',
        flag_values=values,
    )


def _define_checkpoint(values: Flags) -> None:
    _define_trained(values)
    flags.DEFINE_integer('beam', None, 'Replaces decode.beam (1: greedy).', 1, flag_values=values)
    flags.DEFINE_float(
        'length_penalty', None, 'Replaces decode.length_penalty.', flag_values=values
    )


def _trained(values: Flags, splits: tuple[str, ...] = ()) -> Any:
    from transformer_jax.evaluation.evaluator import Trained

    replaced = {
        key: values[key].value
        for key in ('beam', 'length_penalty')
        if values[key].value is not None
    }
    return Trained(_required(values, 'workdir'), values.checkpoint, log, replaced, splits)


def _define_evaluate(values: Flags) -> None:
    _define_checkpoint(values)
    flags.DEFINE_enum('split', 'test', ['validation', 'test'], 'What to score.', flag_values=values)
    flags.DEFINE_list(
        'lengths',
        [],
        'Score each of these lengths by itself, beyond those of training too.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'out',
        '',
        'With --lengths: a picture; by default lengths-SPLIT.png in the workdir.',
        flag_values=values,
    )
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _evaluate(values: Flags) -> None:
    if values.lengths:
        return _evaluate_lengths(values)
    from transformer_jax.evaluation.evaluator import table

    result = _trained(values, (values.split,)).evaluate(values.split)
    print(json.dumps(result) if values.json else table(result))


def _evaluate_lengths(values: Flags) -> None:
    from transformer_jax.evaluation import by_length as lengths

    wanted = _whole_numbers(values, 'lengths')
    trained = _trained(values)
    rows = lengths.by_length(trained, values.split, wanted)
    print(json.dumps(rows) if values.json else lengths.table(rows))
    path = values.out or trained.workdir.path / f'lengths-{values.split}.png'
    log(f'wrote {lengths.draw(rows, trained.data.batching.row_lengths()[-1], path)}')


def _whole_numbers(values: Flags, name: str) -> list[int]:
    if not all(text.isdecimal() and int(text) for text in values[name].value):
        raise ConfigError(
            f'--{name}={",".join(values[name].value)}: whole numbers, divided by commas'
        )
    return list(map(int, values[name].value))


def _translate(values: Flags) -> None:
    trained = _trained(values)
    from transformer_jax.inference.generate import require_ability

    require_ability(trained, 'translate')
    from transformer_jax.data.files import decode_lines

    lines = decode_lines(sys.stdin.buffer.read(), 'standard input')
    for line in trained.evaluator.translate(trained.params, lines):
        print(line)


def _define_generate(values: Flags) -> None:
    _define_trained(values)
    flags.DEFINE_string(
        'prompt', None, 'The text to continue; without it, standard input.', flag_values=values
    )
    flags.DEFINE_integer('max_tokens', 256, 'Tokens to add at most.', 1, flag_values=values)
    flags.DEFINE_enum(
        'method', None, ['sample', 'greedy', 'beam'], 'Replaces decode.method.', flag_values=values
    )
    flags.DEFINE_integer('beam', None, 'Replaces decode.beam.', 1, flag_values=values)
    flags.DEFINE_float('temperature', None, 'Replaces decode.temperature.', 0.0, flag_values=values)
    flags.DEFINE_integer('top_k', None, 'Replaces decode.top_k; 0: all.', 0, flag_values=values)
    flags.DEFINE_float('top_p', None, 'Replaces decode.top_p.', 0.0, 1.0, flag_values=values)
    flags.DEFINE_integer('seed', 0, 'Of the draws.', 0, flag_values=values)
    flags.DEFINE_integer('samples', 1, 'Continuations; the seed counts up.', 1, flag_values=values)
    flags.DEFINE_multi_string(
        'stop',
        [],
        'A text that ends the continuation; may be given several times.',
        flag_values=values,
    )


def _generate(values: Flags) -> None:
    from transformer_jax.evaluation.evaluator import Trained
    from transformer_jax.inference.generate import Generator, require_ability

    replaced = {
        key: values[key].value
        for key in ('method', 'beam', 'temperature', 'top_k', 'top_p')
        if values[key].value is not None
    }
    trained = Trained(_required(values, 'workdir'), values.checkpoint, log, replaced)
    require_ability(trained, 'generate')
    prompt = sys.stdin.read() if values.prompt is None else values.prompt
    generator = Generator(trained, values.max_tokens, tuple(values.stop))
    for sample in range(values.samples):
        beam = trained.config.decode.method == 'beam'
        pieces = (
            [generator.search(prompt)] if beam else generator.stream(prompt, values.seed + sample)
        )
        print(prompt, end='')
        for piece in pieces:
            print(piece, end='', flush=True)
        print()


def _classify(values: Flags) -> None:
    trained = _trained(values)
    from transformer_jax.data.files import decode_lines
    from transformer_jax.inference.generate import classify, require_ability

    require_ability(trained, 'classify')
    for name, share in classify(trained, decode_lines(sys.stdin.buffer.read(), 'standard input')):
        print(f'{name}\t{share:.4f}')


def _define_attention(values: Flags) -> None:
    _define_checkpoint(values)
    flags.DEFINE_string('text', '', 'The sentence to translate.', flag_values=values)
    flags.DEFINE_string(
        'out', 'attention.png', 'The picture; more than one are numbered.', flag_values=values
    )


def _attention(values: Flags) -> None:
    text = _required(values, 'text')
    trained = _trained(values)
    from transformer_jax.inference.attention_maps import draw_translation
    from transformer_jax.inference.generate import require_ability

    require_ability(trained, 'attention')
    hypothesis, files = draw_translation(trained, text, values.out)
    print(hypothesis)
    for file in files:
        log(f'wrote {file}')


def _define_inspect(values: Flags) -> None:
    _define_config(values)
    _define_workdir(values)
    flags.DEFINE_integer(
        'devices',
        None,
        'Devices for parallel.mesh; by default those of this machine.',
        1,
        flag_values=values,
    )


def _inspect(values: Flags) -> None:
    from transformer_jax.profiling import inspect

    if values.workdir:
        inspect.inspect_workdir(values.workdir)
    else:
        inspect.inspect_config(_config(values), values.devices)


def _define_bench_train(values: Flags) -> None:
    _define_config(values)
    flags.DEFINE_integer('steps', 30, 'Steps of the loop.', 1, flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _bench_train(values: Flags) -> None:
    from transformer_jax.profiling import bench_train as bench
    from transformer_jax.profiling import timing

    config = _config(values)
    jax.config.update('jax_enable_compilation_cache', False)  # What is measured includes compiling.
    result = bench.bench_train(config, values.steps, log)
    timing.show(result, bench.tables(result), values.json)


def _define_bench_decode(values: Flags) -> None:
    _define_config(values)
    flags.DEFINE_integer(
        'longest',
        128,
        'Output tokens; an eighth, a quarter and a half of it beside it.',
        16,
        flag_values=values,
    )
    flags.DEFINE_integer('rows', 64, 'Sentences of a batch.', 1, flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _bench_decode(values: Flags) -> None:
    from transformer_jax.profiling import bench_decode, timing

    result = bench_decode.bench_decode(_config(values), values.longest, values.rows, log)
    timing.show(result, bench_decode.tables(result), values.json)


def _define_bench_attention(values: Flags) -> None:
    from transformer_jax.profiling.bench_attention import DEFAULTS

    flags.DEFINE_string(
        'attention',
        '; '.join(DEFAULTS),
        'Specs, divided by semicolons; {T} stands for the length.',
        flag_values=values,
    )
    flags.DEFINE_list(
        'engines', 'dense,chunked,blocked', 'For the kinds that have a choice.', flag_values=values
    )
    flags.DEFINE_list('lengths', '512,1024,2048,4096,8192', 'Sequence lengths.', flag_values=values)
    flags.DEFINE_integer('rows', 1, 'Sequences of a batch.', 1, flag_values=values)
    flags.DEFINE_integer('heads', 8, 'Query heads.', 1, flag_values=values)
    flags.DEFINE_integer('kv_heads', 0, 'Key-value heads; 0: as many.', 0, flag_values=values)
    flags.DEFINE_integer('head_dim', 64, 'Size of a head.', 1, flag_values=values)
    flags.DEFINE_bool(
        'timed',
        True,
        'Run the programs; --notimed only compiles them, for their memory.',
        flag_values=values,
    )
    flags.DEFINE_string('out', '', 'A picture of the curves.', flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _bench_attention(values: Flags) -> None:
    from transformer_jax.profiling import bench_attention, timing

    lengths = _whole_numbers(values, 'lengths')
    sizes = bench_attention.Sizes(
        values.rows, values.heads, values.kv_heads or values.heads, values.head_dim
    )
    if sizes.heads % sizes.kv_heads:
        raise ConfigError(f'--heads={sizes.heads} is not divisible by --kv_heads={sizes.kv_heads}')
    attentions = [text.strip() for text in values.attention.split(';')]
    result = bench_attention.bench_attention(
        attentions, values.engines, lengths, sizes, log, values.timed
    )
    timing.show(result, bench_attention.tables(result), values.json)
    if values.out:
        log(f'wrote {bench_attention.draw(result, values.out)}')


COMMANDS = {
    'train': Command('train a model, or go on where its workdir stopped', _define_train, _train),
    'evaluate': Command('score a trained model on a split', _define_evaluate, _evaluate),
    'translate': Command('translate lines from standard input', _define_checkpoint, _translate),
    'generate': Command('continue a text with a language model', _define_generate, _generate),
    'classify': Command('the class of each line of standard input', _define_checkpoint, _classify),
    'attention': Command(
        'draw the attention of every layer and head', _define_attention, _attention
    ),
    'probe': Command(
        'entropy, distance, sink and largest score of every head', define_probe, run_probe
    ),
    'inspect': Command(
        'parameters, FLOPs, memory and shardings of a config; the state of a workdir',
        _define_inspect,
        _inspect,
    ),
    'ablate': Command(
        'run what is missing of an experiment: its variants, with seeds',
        define_ablate,
        run_ablate,
        'experiment',
    ),
    'report': Command(
        'what an ablation found: tables, tests, figures, curves',
        define_report,
        run_report,
        'results',
    ),
    'bench train': Command(
        'time training steps, and where they go', _define_bench_train, _bench_train
    ),
    'bench decode': Command(
        'time decoding against the length of its output', _define_bench_decode, _bench_decode
    ),
    'bench attention': Command(
        'time and memory of kinds of attention against the sequence length',
        _define_bench_attention,
        _bench_attention,
    ),
}
