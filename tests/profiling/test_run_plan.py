"""Plans, made by the compiler of this machine's CPU for eight devices, and by one that refuses."""

import functools
import io
import json
import math

import jax
import pytest
import rich.console

from transformer_jax import config as config_lib
from transformer_jax.cli import main
from transformer_jax.errors import ConfigError
from transformer_jax.models import abstract_params, build_model
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.partitioning.topologies import Topology
from transformer_jax.profiling import plan as planning
from transformer_jax.profiling import plan_tables
from transformer_jax.profiling.lowered import Lowered, lower
from transformer_jax.profiling.plan import changes, make_plan
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.train_state import init_state

TINY = {
    'model.kind': 'decoder_only',
    'model.decoder_layers': 1,
    'model.d_model': 32,
    'model.num_heads': 4,
    'model.d_ff': 64,
    'data.vocab_size': 64,
    'data.batching': 'buckets(lengths=(8, 16))',
    'train.batch_tokens': 256,
    'evaluate.batch_tokens': 256,
    'decode.max_extra_tokens': 4,
    'decode.method': 'greedy',
}


def experiment(**overrides):
    return config_lib.override(
        ExperimentConfig(), TINY | {key.replace('__', '.'): v for key, v in overrides.items()}
    )


@pytest.fixture
def here(monkeypatch):
    """Stand the eight CPU devices of the tests in for those of v5e:2x4."""
    monkeypatch.setattr(Topology, 'devices', lambda self: jax.devices())
    monkeypatch.setattr(Topology, 'platform', 'cpu')


def overrides_of(config, command='train', devices=8):
    return [text for text, _ in changes(config, command, devices)]


def test_the_smallest_change_comes_first():
    found = overrides_of(experiment())
    assert found[:4] == [
        '',
        '--config.train.accumulate=2',
        '--config.train.accumulate=4',
        '--config.train.accumulate=8',
    ]
    cut = '--config.parallel.mesh.data=1 --config.parallel.mesh.fsdp=8'
    assert found[4] == cut
    assert found[7] == f'{cut} --config.train.accumulate=8'
    most = f'{cut} --config.train.accumulate=8 --config.model.remat=full'
    assert found[8:] == [
        '--config.model.remat=full',
        most,
        '--config.model.engine=chunked',
        f'{most} --config.model.engine=chunked',
    ]


def test_changes_that_cannot_be_are_left_out():
    cut = '--config.parallel.mesh.data=1 --config.parallel.mesh.fsdp=8'
    assert overrides_of(experiment(), 'evaluate')[1:3] == [cut, '--config.model.engine=chunked']
    sharded = experiment(parallel__mesh__data=1, parallel__mesh__fsdp=8)
    assert cut not in overrides_of(sharded)
    chunked = experiment(model__engine='chunked')
    assert not any('engine' in text for text in overrides_of(chunked))
    # The chunked engine cannot sort whole rows.
    sorting = experiment(model__attention='softmax(normalizer=sparsemax)', model__engine='dense')
    assert not any('engine' in text for text in overrides_of(sorting))


@pytest.mark.parametrize('change', ['', pytest.param('train__accumulate', marks=pytest.mark.slow)])
def test_compiled_flops_are_those_of_the_model(here, change):
    config = experiment(model__engine='dense', **({change: 2} if change else {}))
    plan = make_plan(config, 'v5e:2x4', 'train', 0.0, lambda line: None)
    (found,) = plan.attempts
    assert found.fits
    assert found.mesh == {'data': 8, 'fsdp': 1, 'context': 1, 'tensor': 1}
    assert (found.rows, found.length, found.tokens) == (16, 16, 256)
    assert 8 * found.program.flops == pytest.approx(found.model_flops, rel=0.02)


def test_parameters_cut_over_devices_are_gathered(here):
    config = experiment(parallel__mesh__data=1, parallel__mesh__fsdp=8, model__engine='dense')
    plan = make_plan(config, 'v5e:2x4', 'train', 0.0, lambda line: None)
    gathers = [c for c in plan.attempts[0].program.collectives if c.kind == 'all-gather']
    assert [c.axes for c in gathers] == [('fsdp',)]
    parameters = 4 * (4 * 32 * 32 + 2 * 32 * 64)  # float32 kernels, gathered at least once
    assert gathers[0].bytes >= parameters


@pytest.mark.parametrize('command', ['evaluate', pytest.param('decode', marks=pytest.mark.slow)])
def test_other_programs_are_planned_too(here, command):
    plan = make_plan(experiment(), 'v5e:2x4', command, 0.0, lambda line: None)
    (found,) = plan.attempts
    assert found.fits
    assert plan.forecast.tokens_per_second > 0
    assert found.tokens == found.rows * (16 if command == 'evaluate' else 20)
    assert (plan.forecast.mfu > 0) == (command == 'evaluate')


@pytest.mark.slow
def test_seeds_side_by_side_are_planned_as_they_train(here):
    config = experiment(train__num_seeds=4, data__batching='packed(length=16)')
    plan = make_plan(config, 'v5e:2x4', 'train', 0.0, lambda line: None)
    (found,) = plan.attempts
    assert found.mesh['seed'] == 4
    assert found.rows == 4 * 16


class Refused:
    """A program that the compiler of TPUs refuses for its size."""

    def compile(self):
        raise jax.errors.JaxRuntimeError(
            'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. '
            'Exceeded hbm capacity by 4.75G.'
        )


@pytest.mark.parametrize(
    ('text', 'sizes'),
    [
        ('Used 20.50G of 15.75G hbm. Exceeded', ('20.50', 'G', '15.75', 'G')),
        (
            'the total memory required for HLO temporaries (900.5M) exceeds available HBM (15.75G)',
            ('900.5', 'M', '15.75', 'G'),
        ),
    ],
)
def test_both_ways_in_which_the_compiler_says_too_large(text, sizes):
    assert planning.TOO_LARGE.search(text).groups() == sizes


class Broken:
    """A program that the compiler fails on."""

    def compile(self):
        raise jax.errors.JaxRuntimeError('INTERNAL: a bug')


@pytest.fixture
def compiler(monkeypatch, here):
    """Have one product compiled in place of any program, if its configuration is allowed."""
    square = jax.ShapeDtypeStruct((64, 64), 'float32')
    product = jax.jit(lambda a: a @ a).lower(square)

    def allow(allowed, otherwise):
        def lowered(config, *args):
            found = product if allowed(config) else otherwise
            return Lowered(
                found, {'data': 8, 'fsdp': 1, 'context': 1, 'tensor': 1}, 16, 16, 256, 8e6, 0
            )

        monkeypatch.setattr(planning, 'lower', lowered)

    return allow


def printed(plan):
    console = rich.console.Console(file=io.StringIO(), width=160)
    for table in plan_tables.tables(plan):
        console.print(table)
    return console.file.getvalue()


def test_what_does_not_fit_is_changed_until_it_does(compiler):
    compiler(lambda config: config.train.accumulate >= 2, Refused())
    lines = []
    plan = make_plan(experiment(), 'v5e:2x4', 'train', 2.0, lines.append)
    first, second = plan.attempts
    assert (first.fits, first.program) == (False, None)
    assert first.needed == pytest.approx(20.5 * 2**30)
    assert first.capacity == pytest.approx(15.75 * 2**30)
    assert (second.fits, second.change) == (True, '--config.train.accumulate=2')
    assert len(lines) == 2
    assert '--config.train.accumulate=2' in lines[1]
    forecast = plan.forecast
    hours = plan.steps * forecast.roofline.step / 3600
    assert forecast.cost == pytest.approx(2.0 * 8 * hours)
    text = printed(plan)
    assert '20.50' in text
    assert '15.75' in text


def test_where_nothing_fits_the_plan_says_so(compiler, capsys):
    compiler(lambda config: False, Refused())
    plan = make_plan(experiment(), 'v5e:2x4', 'train', 0.0, lambda line: None)
    assert plan.forecast is None
    assert len(plan.attempts) > 3
    plan_tables.print_plan(plan, as_json=False)
    assert '4.75 GiB too much of 15.75 GiB' in capsys.readouterr().out


def test_another_error_of_the_compiler_is_raised(compiler):
    compiler(lambda config: False, Broken())
    with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
        make_plan(experiment(), 'v5e:2x4', 'train', 0.0, lambda line: None)


def test_the_plan_as_json_is_the_plan(compiler, capsys):
    compiler(lambda config: True, Refused())
    plan = make_plan(experiment(), 'v5e:2x4', 'train', 1.5, lambda line: None)
    plan_tables.print_plan(plan, as_json=True)
    found = json.loads(capsys.readouterr().out)
    (attempt,) = found['attempts']
    assert attempt['fits'] is True
    assert attempt['program']['memory']['peak'] == plan.attempts[0].needed
    assert found['forecast']['cost'] == pytest.approx(plan.forecast.cost)
    assert found['peaks']['flops'] == 197e12
    assert math.isfinite(found['forecast']['mfu'])


def test_parameters_of_a_model_with_kernels_are_made_on_any_mesh():
    """A kernel runs on each device's share of the rows, and parameters are made from one row."""
    components = config_lib.resolve(experiment(model__engine='splash'), 'tpu')
    model = build_model(components.architecture)
    with Partitioner(components.config.parallel.mesh).context():
        state = jax.eval_shape(functools.partial(init_state, components, model))
        boxed = abstract_params(model)
    assert jax.tree.structure(state.params) == jax.tree.structure(boxed)


@pytest.mark.parametrize(
    ('topology', 'engine', 'told'),
    [
        ('h200:8', 'splash', "model.engine='splash' needs a TPU, the devices are cuda"),
        ('v5e:2x2', 'cudnn', "model.engine='cudnn' needs an NVIDIA GPU, the devices are tpu"),
    ],
)
def test_a_kernel_of_another_accelerator_is_refused_in_one_line(topology, engine, told):
    half = experiment(model__engine=engine, model__dtype='bfloat16')
    with pytest.raises(ConfigError) as error:
        make_plan(half, topology, 'train', 0.0, lambda line: None)
    assert told in str(error.value)
    assert '\n' not in str(error.value)


def test_a_kernel_needs_its_platform():
    with pytest.raises(ConfigError, match=r"model\.engine='splash' needs a TPU, the devices are"):
        lower(experiment(model__engine='splash'), 'train', 'cpu')


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (['--topology=v5e:4x5'], 'the nearest are v5e:4x4'),
        (['--topology=v5e:2x2', '--price=0'], '--price=0.0: more than 0'),
        (['--topology=v5e:2x2', '--price=nan'], '--price=nan: more than 0'),
        (['--topology=v5e:2x2', '--devices=4'], '--topology and --devices exclude one another'),
        (['--price=1'], '--price belongs to a plan: give --topology'),
        (['--json'], '--json belongs to a plan'),
        (['--topology=v5e:2x2', '--config.model.engine=splash'], 'needs a TPU, the devices are'),
        (['--topology=h200:8', '--config.model.engine=cudnn'], "model.dtype='float32', the kernel"),
        (['--topology=h200:12'], 'h200:8 or h200:16'),
        (['--topology=v5e:2x2', '--config.parallel.mode=pmap'], "set parallel.mode='jit'"),
        (['--topology=v5e:2x2', '--config.parallel.mesh.fsdp=3'], 'needs a multiple of 3 devices'),
    ],
)
def test_mistakes_of_users_are_one_line(here, flags, told, capsys):
    assert main(['inspect', '--config=configs/number_words.py:en-de', *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('transformer-jax: ')
    assert told in error
