"""The command line: `transformer-jax COMMAND --flags`, exit codes, one clear message an error."""

import difflib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from transformer_jax import spec
from transformer_jax.config import ExperimentConfig, flatten, from_config_dict
from transformer_jax.errors import ConfigError, UserError

Flags = flags.FlagValues


class Command(NamedTuple):
    """One word after `transformer-jax`, or two."""

    help: str
    define: Callable[[Flags], None]
    run: Callable[[Flags], None]


def log(message: str) -> None:
    """Remarks go to standard error, from the first process alone; standard output is for results."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, see `errors`."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ('help', '--help', '-h'):
        print(_overview())
        return 0 if arguments else 2
    words = 2 if ' '.join(arguments[:2]) in COMMANDS else 1
    name, rest = ' '.join(arguments[:words]), arguments[words:]
    values, given = Flags(), sys.argv
    flags.DEFINE_bool('debug', False, 'Show the traceback of an error.', flag_values=values)
    flags.DEFINE_bool('help', False, 'Show these flags.', short_name='h', flag_values=values)
    try:
        if name not in COMMANDS:
            raise ConfigError(f'unknown command {name!r}: {spec.nearest(name, COMMANDS)}')
        COMMANDS[name].define(values)
        _parse(values, name, rest)
        if values.help:
            print(_usage(name, values))
            return 0
        _prepare(values)
        COMMANDS[name].run(values)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if '--debug' in rest:
            raise
        print(f'transformer-jax: {error}', file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print('transformer-jax: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # The reader of our output has left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        sys.argv = given


def _overview() -> str:
    lines = ['Transformers in JAX: train, ablate, reproduce.', '', 'Commands (each has --help):']
    return '\n'.join(lines + [f'  transformer-jax {name:<12} {command.help}' for name, command in COMMANDS.items()])


def _usage(name: str, values: Flags) -> str:
    lines = [f'transformer-jax {name}: {COMMANDS[name].help}', '']
    shown = [values[flag] for flag in sorted(values) if flag == values[flag].name and '.' not in flag]
    return '\n'.join(lines + [f'  --{flag.name:<15} {flag.help}' for flag in shown])


def _parse(values: Flags, name: str, arguments: list[str]) -> None:
    _check_keys(arguments)
    # config_flags reads the overrides (--config.train.steps=…) from sys.argv itself, and run.json the command.
    sys.argv = ['transformer-jax', *name.split(), *arguments]
    try:
        rest = values(['', *arguments])[1:]
        # A file that could not be read is no error before something of it is used.
        getattr('config' in values and values.config, 'lock', None)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(f'unknown flag --{error.flagname}: {spec.nearest(error.flagname, values)}') from None
    except Exception as error:  # A configuration file is a program, and may raise anything.
        raise ConfigError(_explain(error)) from error
    if rest:
        raise ConfigError(f'unexpected argument {rest[0]!r}; flags are written --NAME=VALUE')


def _check_keys(arguments: list[str]) -> None:
    """Refuses `--config.KEY` where there is no such key, with the nearest one of its section or of any."""
    keys = list(flatten(ExperimentConfig()))
    for argument in arguments:
        flag, _, key = argument.partition('=')[0].lstrip('-').partition('.')
        if flag == 'config' and key and key not in keys:
            section, _, last = key.rpartition('.')
            nearby = [k for k in keys if k.rpartition('.')[0] == section] or [
                k for k in keys if difflib.get_close_matches(last, [k.rpartition('.')[2]])]
            hint = spec.nearest(key, nearby) if nearby else 'transformer_jax/config.py holds them all'
            raise ConfigError(f'--config.{key}: unknown configuration key; {hint}')


def _explain(error: Exception) -> str:
    """One line for what absl and ml_collections raise over flags, or the configuration file over itself."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    for cause in chain:
        places = [frame for frame in traceback.extract_tb(cause.__traceback__)
                  if frame.name in ('<module>', 'get_config')]
        if places:
            return f'--config: {places[-1].filename}:{places[-1].lineno}: {_last_line(cause)}'
    first = str(error).partition('\n')[0]
    if not isinstance(error, flags.Error) or 'config file' in first:
        return f'--config: {_last_line(chain[-1])}'
    first = re.sub('^flag ', '', first)
    first = re.sub('invalid literal for int.*', 'not a whole number', first)
    return re.sub('could not convert string to float.*', 'not a number', first)


def _last_line(error: BaseException) -> str:
    # ConfigDict wraps its own errors, with the hint in the last line; a KeyError's text is the repr of its argument.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ': '.join([type(error).__name__, *text.strip().splitlines()[-1:]])


def _prepare(values: Flags) -> None:
    """Quiet libraries, a compilation cache, and the other processes of the run where there are any."""
    logging.set_verbosity(logging.WARNING)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/transformer_jax/xla'))
    if 'distributed' in values and values.distributed:
        jax.distributed.initialize()
    elif 'coordinator' in values and values.coordinator:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)


def _config(values: Flags) -> ExperimentConfig:
    if not values['config'].present:
        raise ConfigError('--config is missing: give a file of configs/, as in --config=configs/number_words.py:en-de')
    if not isinstance(values.config, ml_collections.ConfigDict):
        raise ConfigError(f'--config: get_config returned {type(values.config).__name__}, not a ConfigDict')
    return from_config_dict(values.config)


def _required(values: Flags, name: str) -> Any:
    if not values[name].value:
        raise ConfigError(f'--{name} is missing')
    return values[name].value


def _define_config(values: Flags) -> None:
    config_flags.DEFINE_config_file('config', None, 'The experiment: FILE.py[:ARG]; override with --config.KEY=VALUE.',
                                    flag_values=values)


def _define_workdir(values: Flags) -> None:
    flags.DEFINE_string('workdir', '', 'The directory that holds all of a run.', flag_values=values)


def _define_train(values: Flags) -> None:
    _define_config(values)
    _define_workdir(values)
    flags.DEFINE_bool('distributed', False, 'One process of many, as the cluster\'s environment says (SLURM, TPU, …).',
                      flag_values=values)
    flags.DEFINE_string('coordinator', '', 'One process of many: HOST:PORT of process 0.', flag_values=values)
    flags.DEFINE_integer('num_processes', 1, 'How many processes, with --coordinator.', 1, flag_values=values)
    flags.DEFINE_integer('process_id', 0, 'Which of them, with --coordinator.', 0, flag_values=values)


def _train(values: Flags) -> None:
    config, workdir = _config(values), _required(values, 'workdir')
    from transformer_jax.train import train
    best = train(config, workdir, log)
    log(f'done: {workdir}' + (f'; best {best["metric"]} {best["value"]:.4f} at step {best["step"]}' if best else ''))


def _define_checkpoint(values: Flags) -> None:
    _define_workdir(values)
    flags.DEFINE_string('checkpoint', '', 'best, last, avg:N or a step; by default the best, or the last where none '
                        'was evaluated.', flag_values=values)
    flags.DEFINE_integer('beam', None, 'Replaces decode.beam (1: greedy).', 1, flag_values=values)
    flags.DEFINE_float('length_penalty', None, 'Replaces decode.length_penalty.', flag_values=values)


def _trained(values: Flags, splits: tuple[str, ...] = ()) -> Any:
    from transformer_jax.evaluate import Trained
    replaced = {key: values[key].value for key in ('beam', 'length_penalty') if values[key].value is not None}
    return Trained(_required(values, 'workdir'), values.checkpoint, log, replaced, splits)


def _define_evaluate(values: Flags) -> None:
    _define_checkpoint(values)
    flags.DEFINE_enum('split', 'test', ['validation', 'test'], 'What to score.', flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _evaluate(values: Flags) -> None:
    from transformer_jax.evaluate import table
    result = _trained(values, (values.split,)).evaluate(values.split)
    print(json.dumps(result) if values.json else table(result))


def _translate(values: Flags) -> None:
    trained = _trained(values)
    from transformer_jax.data.files import decode_lines
    lines = decode_lines(sys.stdin.buffer.read(), 'standard input')
    for line in trained.evaluator.translate(trained.params, lines):
        print(line)


def _define_attention(values: Flags) -> None:
    _define_checkpoint(values)
    flags.DEFINE_string('text', '', 'The sentence to translate.', flag_values=values)
    flags.DEFINE_string('out', 'attention.png', 'The picture; more than one are numbered.', flag_values=values)


def _attention(values: Flags) -> None:
    text = _required(values, 'text')
    from transformer_jax.plots import draw_translation
    hypothesis, files = draw_translation(_trained(values), text, values.out)
    print(hypothesis)
    for file in files:
        log(f'wrote {file}')


def _define_inspect(values: Flags) -> None:
    _define_config(values)
    _define_workdir(values)
    flags.DEFINE_integer('devices', None, 'Devices for parallel.mesh; by default those of this machine.', 1,
                         flag_values=values)


def _inspect(values: Flags) -> None:
    from transformer_jax import inspect
    if values.workdir:
        inspect.inspect_workdir(values.workdir)
    else:
        inspect.inspect_config(_config(values), values.devices)


def _define_bench_train(values: Flags) -> None:
    _define_config(values)
    flags.DEFINE_integer('steps', 30, 'Steps of the loop.', 1, flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _bench_train(values: Flags) -> None:
    from transformer_jax import bench, timing
    config = _config(values)
    jax.config.update('jax_enable_compilation_cache', False)  # What is measured includes compiling.
    result = bench.bench_train(config, values.steps, log)
    timing.show(result, bench.tables(result), values.json)


def _define_bench_decode(values: Flags) -> None:
    _define_config(values)
    flags.DEFINE_integer('longest', 128, 'Output tokens; an eighth, a quarter and a half of it beside it.', 16,
                         flag_values=values)
    flags.DEFINE_integer('rows', 64, 'Sentences of a batch.', 1, flag_values=values)
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def _bench_decode(values: Flags) -> None:
    from transformer_jax import bench_decode, timing
    result = bench_decode.bench_decode(_config(values), values.longest, values.rows, log)
    timing.show(result, bench_decode.tables(result), values.json)


COMMANDS = {
    'train': Command('train a model, or go on where its workdir stopped', _define_train, _train),
    'evaluate': Command('score a trained model on a split', _define_evaluate, _evaluate),
    'translate': Command('translate lines from standard input', _define_checkpoint, _translate),
    'attention': Command('draw the attention of every layer and head', _define_attention, _attention),
    'inspect': Command('parameters, FLOPs, memory and shardings of a config; the state of a workdir',
                       _define_inspect, _inspect),
    'bench train': Command('time training steps, and where they go', _define_bench_train, _bench_train),
    'bench decode': Command('time decoding against the length of its output', _define_bench_decode, _bench_decode),
}
