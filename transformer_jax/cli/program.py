"""The command line `transformer-jax COMMAND --flags`: parsing, exit codes, error messages."""

import difflib
import re
import signal
import sys
import traceback

import jax
from absl import flags, logging

from transformer_jax import process_end, spec
from transformer_jax.cli.commands import COMMANDS
from transformer_jax.cli.flags import Command, Flags
from transformer_jax.cli.help import overview, usage, version
from transformer_jax.cli.processes import join_processes
from transformer_jax.cli.streams import ReaderEndedError, guarded_streams
from transformer_jax.errors import ALIKE, ConfigError, UserError
from transformer_jax.host_memory import exhausted, tune_host_memory
from transformer_jax.partitioning.peers import peers
from transformer_jax.renames import RENAMED_KEYS
from transformer_jax.schema import ExperimentConfig, flatten
from transformer_jax.storage.paths import user_cache

# Flags that are gone -> what to write in their place.
RENAMED = {
    'replicas': '--seeds_per_program',
    'shard': '--part, which counts from 0: --part=0/8 is what --shard=1/8 was',
}


def run_command(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return its exit code, see `errors`."""
    with guarded_streams():
        try:
            code = _run(arguments)
        except Exception:
            if (others := peers()) is None:
                raise
            traceback.print_exc()
            others.leave(1)
        if code and (others := peers()) is not None:
            others.leave(code)
        return code


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    if arguments[:1] == ['help'] and len(arguments) > 1:
        arguments = [*arguments[1:], '--help']
    words = 2 if ' '.join(arguments[:2]) in COMMANDS else 1
    name, rest = ' '.join(arguments[:words]), arguments[words:]
    values, given = Flags(), sys.argv
    flags.DEFINE_bool('debug', False, 'Show the traceback of an error.', flag_values=values)
    flags.DEFINE_bool('help', False, 'Show these flags.', short_name='h', flag_values=values)
    try:
        if name in ('', 'help', '--help', '-h', '--version') and not rest:
            print(version() if name == '--version' else overview())
            sys.stdout.flush()
            return 0 if name else 2
        if name not in COMMANDS:
            raise ConfigError(f'unknown command {name!r}: {spec.nearest(name, COMMANDS)}')
        _parse(values, name, rest)
        if values.help:
            print(usage(name, values))
            sys.stdout.flush()
            return 0
        _prepare_process()
        _run_command(COMMANDS[name], values)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if '--debug' in rest:
            raise
        print(f'transformer-jax: {error}', file=sys.stderr)
        return error.exit_code
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if '--debug' in rest or not exhausted(error):
            raise
        print(f'transformer-jax: {exhausted(error)}', file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt as error:
        print(f'transformer-jax: {str(error) or "interrupted"}', file=sys.stderr)
        return process_end.exit_code(getattr(error, 'signum', signal.SIGINT))
    except ReaderEndedError:
        if (others := peers()) is not None:
            others.leave(0)  # They are in the midst of what nobody reads any more.
        return 0
    finally:
        sys.argv = given


def _run_command(command: Command, values: Flags) -> None:
    """Run a command; an error that comes from the end of another process says so."""
    if (guard := process_end.guard()) is not None:
        guard.at_once = False
    try:
        if 'coordinator' in values:
            join_processes(values)  # First: the others hear of what is wrong here.
        command.run(values)
    except ALIKE:
        raise
    except Exception as error:
        if (others := peers()) is None:
            raise
        cause = others.explain(error)
        raise cause from (None if cause is error else error)


def _parse(values: Flags, name: str, arguments: list[str]) -> None:
    """Define the flags of a command and read them."""
    _check_keys(arguments)
    # config_flags reads the overrides (--config.train.steps=…) from sys.argv, some where a flag is
    # defined; run.json records it as the command.
    command = ['transformer-jax', *name.split()]
    sys.argv = [*command, *arguments]
    try:
        COMMANDS[name].define(values)
        arguments = _underscored(arguments, values)
        sys.argv[:] = [*command, *arguments]
        rest = values(['', *arguments])[1:]
        # config_flags raises the error of a file that cannot be read only when it is first used.
        getattr('config' in values and values.config, 'lock', None)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        hint = f'it is now {RENAMED[name]}' if name in RENAMED else spec.nearest(name, values)
        raise ConfigError(f'unknown flag --{name}: {hint}') from None
    except (
        Exception,
        SystemExit,
    ) as error:  # A configuration file is a program: it raises anything.
        raise ConfigError(_explain(error)) from error
    if rest and COMMANDS[name].argument:
        values[COMMANDS[name].argument].parse(rest.pop(0))
    if rest:
        raise ConfigError(f'unexpected argument {rest[0]!r}; flags are written --NAME=VALUE')


def _underscored(arguments: list[str], values: Flags) -> list[str]:
    """Write --dry-run as --dry_run; the value of a flag, after = or a space, stays as it is."""
    written, is_value = [], False
    for argument in arguments:
        if is_value or not argument.startswith('-'):
            written.append(argument)
            is_value = False
            continue
        argument = re.sub('^--[a-z-]+', lambda flag: '--' + flag[0][2:].replace('-', '_'), argument)
        written.append(argument)
        name, equals, _ = argument.lstrip('-').partition('=')
        is_value = not equals and name in values and not values[name].boolean
    return written


def _check_keys(arguments: list[str]) -> None:
    """Raise ConfigError for a `--config.KEY` that does not exist, naming the nearest key."""
    keys = list(flatten(ExperimentConfig()))
    for argument in arguments:
        flag, _, key = argument.partition('=')[0].lstrip('-').partition('.')
        if flag == 'config' and key and key not in keys:
            section, _, last = key.rpartition('.')
            nearby = [k for k in keys if k.rpartition('.')[0] == section] or [
                k for k in keys if difflib.get_close_matches(last, [k.rpartition('.')[2]])
            ]
            hint = (
                spec.nearest(key, nearby) if nearby else 'transformer_jax/schema.py lists them all'
            )
            raise ConfigError(f'--config.{key}: unknown configuration key; {hint}')


def _explain(error: BaseException) -> str:
    """Return one line for an error that absl, ml_collections or a configuration file raised."""
    chain: list[BaseException] = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    for cause in chain:
        if isinstance(cause, UserError):  # Our own, from get_config: its message is complete.
            return f'--config: {cause}'
        places = [
            frame
            for frame in traceback.extract_tb(cause.__traceback__)
            if frame.name in ('<module>', 'get_config')
        ]
        if places:
            return f'--config: {places[-1].filename}:{places[-1].lineno}: {_last_line(cause)}'
    first = str(error).partition('\n')[0]
    if not isinstance(error, flags.Error) or 'config file' in first:
        return f'--config: {_last_line(chain[-1])}'
    first = re.sub('^flag ', '', first)
    first = re.sub(
        'Overriding config is not allowed.*',
        'write --config.KEY=…, the experiment has a config',
        first,
    )
    first = re.sub('invalid literal for int.*', 'not a whole number', first)
    first = re.sub(r'Exceeds the limit \(\d+ digits\).*', 'a number with too many digits', first)
    first = re.sub('could not convert string to float.*', 'not a number', first)
    return first if len(first) <= 500 else f'{first[:200]} … {first[-100:]}'


def _last_line(error: BaseException) -> str:
    # ConfigDict wraps its own errors, with the hint in the last line. The text of a KeyError is the
    # repr of its argument, so the argument itself is taken.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    hints = [
        f'{old} is called {new} now'
        for old, new in RENAMED_KEYS.items()
        if f'"{old.rpartition(".")[2]}"' in text
    ]
    return ': '.join([type(error).__name__, *text.strip().splitlines()[-1:], *hints])


def _prepare_process() -> None:
    """Set up this process: logging, memory, compilation cache."""
    logging.set_verbosity(logging.WARNING)
    tune_host_memory()
    if not jax.config.values['jax_compilation_cache_dir']:
        jax.config.update('jax_compilation_cache_dir', str(user_cache() / 'xla'))
