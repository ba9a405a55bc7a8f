"""What must happen before JAX's backend starts, and what many tests share."""

import collections
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

# Programs here run for milliseconds and compile for seconds: less optimised, all tests take two
# thirds of the time. The variable, unlike jax.config, also reaches the processes that tests start.
# It must be there before jax. With 0 the same tests run the programs that users run.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import fsspec
import hypothesis
import jax
import numpy as np
import pytest
from helpers.fake_bucket import FakeBucket

from transformer_jax.batch import BOS, Batch
from transformer_jax.cli import main
from transformer_jax.config import resolve_architecture
from transformer_jax.models.architecture import Architecture
from transformer_jax.schema import ModelConfig
from transformer_jax.training.train import train

# A script that starts the tests in the background has them ignore these, and so every program that
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update(
    'jax_numpy_rank_promotion', 'raise'
)  # every broadcast in the package is written out
hypothesis.settings.register_profile('tests', deadline=None, derandomize=True)
hypothesis.settings.load_profile('tests')


def pytest_addoption(parser):
    """Add the option that holds attention kinds of other packages to the contract."""
    parser.addoption(
        '--kind',
        action='append',
        default=[],
        help='an attention kind of another package, for tests/laws: my_kinds.cosine.Cosine',
    )


def pytest_configure(config):
    """Compiled programs are kept in pytest's cache, for the next run and for the other workers of
    this one.
    """
    if config.pluginmanager.hasplugin('cacheprovider'):
        jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir('jax')))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def pytest_collection_modifyitems(items):
    """Give the report of each injected fault its kind; xdist sends reports, not marks."""
    for item in items:
        for mark in item.iter_markers('fault'):
            item.user_properties.append(('fault', *mark.args))


def pytest_terminal_summary(terminalreporter):
    """Print how many of the injected faults had the right outcome, by kind."""
    counts = collections.defaultdict(collections.Counter)
    for outcome in ('passed', 'failed', 'error', 'skipped'):
        for report in terminalreporter.getreports(outcome):
            properties = dict(getattr(report, 'user_properties', ()))
            if 'fault' in properties:
                counts[properties['fault']][outcome] += 1
    if counts:
        terminalreporter.section('injected faults: passed/tried')
    for kind, found in sorted(counts.items()):
        terminalreporter.line(f'{kind}: {found["passed"]}/{found.total()}')


@pytest.fixture(autouse=True, scope='module')
def _forget_programs() -> Iterator[None]:
    """Compiled programs pile up, gigabytes over a whole run; few of a file's serve the next one."""
    yield
    jax.clear_caches()


@pytest.fixture(scope='session')
def tiny() -> Callable[..., ModelConfig]:
    """A model that compiles in about a second: `tiny(norm_placement='pre')`."""

    def build(**changes) -> ModelConfig:
        return ModelConfig(
            **{
                'encoder_layers': 2,
                'decoder_layers': 2,
                'd_model': 16,
                'd_ff': 32,
                'num_heads': 4,
                'dropout': 0.0,
            }
            | changes
        )

    return build


@pytest.fixture(scope='session')
def architecture(tiny) -> Callable[..., Architecture]:
    """The architecture of `tiny(…)` with 10 tokens."""
    return lambda **changes: resolve_architecture(tiny(**changes), 10)


@pytest.fixture(scope='session')
def make_batch() -> Callable[..., Batch]:
    """A batch from rows of (source, target) pairs; several pairs in a row are packed."""

    def build(rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], length: int) -> Batch:
        source, target = np.zeros(
            (2, 3, len(rows), length), np.int32
        )  # tokens, positions, segments
        inputs = np.zeros((len(rows), length), np.int32)
        for row, pairs in enumerate(rows):
            for side, index in ((source, 0), (target, 1)):
                start = 0
                for segment, pair in enumerate(pairs, 1):
                    stop = start + len(pair[index])
                    side[:, row, start:stop] = (
                        pair[index],
                        range(stop - start),
                        [segment] * (stop - start),
                    )
                    if side is target:
                        inputs[row, start:stop] = BOS, *pair[1][:-1]
                    start = stop
        return Batch(*source, inputs, *target, (target[2] > 0).astype(np.float32))

    return build


@pytest.fixture(scope='session')
def random_rows() -> Callable[..., list]:
    """Rows of (source, target) pairs of random tokens from 4 on; `lengths` holds each row's pairs
    of lengths.
    """

    def build(lengths: Sequence[Sequence[tuple[int, int]]], vocab_size: int, seed: int = 0) -> list:
        rng = np.random.default_rng(seed)
        return [
            [tuple(rng.integers(4, vocab_size, n).tolist() for n in pair) for pair in row]
            for row in lengths
        ]

    return build


@pytest.fixture(scope='session')
def slope() -> Callable[..., float]:
    """The derivative of a float64 NumPy function along a direction, by central differences
    (relative error 1e-8).
    """

    def measure(
        function: Callable[..., float],
        points: Sequence[np.ndarray],
        directions: Sequence[np.ndarray],
        h: float = 1e-5,
    ) -> float:
        ahead, behind = (
            [np.asarray(x, np.float64) + sign * h * u for x, u in zip(points, directions)]
            for sign in (1, -1)
        )
        return (function(*ahead) - function(*behind)) / (2 * h)

    return measure


@pytest.fixture(scope='module')
def whole(request, tmp_path_factory):
    """The workdir of the run with the keys RUN of a test file, which nothing disturbed."""
    from helpers.support import experiment, quiet  # It chooses where programs are cached.

    workdir = tmp_path_factory.mktemp('whole')
    train(experiment(**request.module.RUN), workdir, quiet)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of `whole`, to spoil."""
    return shutil.copytree(whole, tmp_path / 'run')


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs a command: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, 'argv', sys.argv)  # which the command line sets

    def run(*arguments: str) -> tuple[int, str, str]:
        sys.modules.pop('config_config', None)  # the file of the command before
        code = main(list(arguments))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def bucket():
    for protocol in ('gs', 'gcs'):
        fsspec.register_implementation(protocol, FakeBucket, clobber=True)
    FakeBucket.store.clear()
    FakeBucket.pseudo_dirs[:] = ['', '/bucket']
    return 'gs://bucket/run'
