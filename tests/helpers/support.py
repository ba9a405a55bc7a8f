"""Tiny experiments for the end-to-end tests, in this process and in others."""

import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
import rich.console
from helpers.processes import heeding_signals

from transformer_jax import config as config_lib
from transformer_jax.errors import Stopped
from transformer_jax.profiling.inspect import inspect_workdir
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train import train

# Every run compiles the same few programs: from the second one on they are read from here, by other
# processes too.
XLA_CACHE = tempfile.TemporaryDirectory(prefix='transformer_jax-tests-')
jax.config.update('jax_compilation_cache_dir', XLA_CACHE.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)

CONFIG_FILE = Path(__file__).parents[2] / 'configs' / 'number_words.py'
CONFIG = f'--config={CONFIG_FILE}:en-de'
TINY = {
    'data.task': 'number_words(limit=300, held_out=20)',
    'data.vocab_size': 90,
    'data.batching': 'buckets(lengths=(24,))',
    'model.encoder_layers': 1,
    'model.decoder_layers': 1,
    'model.d_model': 16,
    'model.d_ff': 32,
    'model.num_heads': 2,
    'train.steps': 12,
    'train.batch_tokens': 512,
    'train.log_every': 1,
    'optim.schedule': 'linear(warmup=4)',
    'optim.learning_rate': 0.003,
    'evaluate.every': 0,
    'evaluate.max_examples': 4,
    'evaluate.batch_tokens': 512,
    'checkpoint.every': 4,
    'checkpoint.average': 1,
    'decode.method': 'greedy',
    'decode.max_extra_tokens': 4,
}


def experiment(**changes: Any) -> ExperimentConfig:
    """The tiny experiment; `train__steps=3` stands for train.steps=3."""
    config = runpy.run_path(str(CONFIG_FILE))['get_config']('en-de')
    config.update_from_flattened_dict(TINY | _dotted(changes))
    return config_lib.from_config_dict(config)


def flags(**changes: Any) -> list[str]:
    """The tiny experiment for a command line."""
    return [
        CONFIG,
        *(f'--config.{key}={value}' for key, value in (TINY | _dotted(changes)).items()),
    ]


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace('__', '.'): value for key, value in changes.items()}


def quiet(message: str) -> None:
    """The log of a run that nobody watches."""


def stop_at(step: int, config: ExperimentConfig, workdir: Path) -> None:
    """Trains in this process until SIGTERM comes right after `step`, which is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, 'received', lambda self, now: signal.SIGTERM * (now == step))
        with pytest.raises(Stopped):
            train(config, workdir, quiet)


def start(
    *arguments: str, devices: int = 1, code: str = '', environment: Mapping[str, str] = {}
) -> subprocess.Popen:
    """`transformer-jax`, or a program that stands for it, in a process of so many CPU devices."""
    program = ['-c', code] if code else ['-m', 'transformer_jax']
    whole = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
        'JAX_COMPILATION_CACHE_DIR': XLA_CACHE.name,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        **environment,
    }
    with heeding_signals():
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            env=whole,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def start_pair(workdir: Path, keys: Sequence[str], own: Sequence = ((), ()), **options) -> list:
    """Start two processes that train one run; `own` has further flags of each."""
    return start_two('train', f'--workdir={workdir}', *keys, own=own, **options)


def start_two(
    *arguments: str,
    own: Sequence = ((), ()),
    devices: int = 1,
    environments: Sequence = ({}, {}),
) -> list:
    """Start two processes of one command.

    `own` has further flags of each, `environments` variables of each.
    """
    port = free_port()
    return [
        start(
            *arguments,
            f'--coordinator=localhost:{port}',
            '--num_processes=2',
            f'--process_id={index}',
            *own[index],
            devices=devices,
            environment=environments[index],
        )
        for index in range(2)
    ]


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a process, expects its exit code, and returns its standard output."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    return output


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen, pause_s: float = 0.002
) -> None:
    """Returns once `condition` holds; the process must not end before."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(pause_s)


def events(workdir: Path, split: str = '') -> list[dict]:
    """What metrics.jsonl holds; a line that is being written does not count."""
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event['split'] == split or not split]


def losses(workdir: Path) -> list[float]:
    """The training loss of every step."""
    return [event['loss'] for event in events(workdir, 'train')]


def recorded(workdir: Path) -> list[tuple]:
    """All that metrics.jsonl says but how fast it went."""
    return [(event['step'], event['split'], event['loss']) for event in events(workdir)]


def fingerprint(workdir: Path) -> str:
    """The line of `inspect --workdir` over parameters, optimizer state, rng and data position."""
    text = io.StringIO()
    inspect_workdir(workdir, rich.console.Console(file=text))
    return text.getvalue().splitlines()[-1]
