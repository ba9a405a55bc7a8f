"""The command `inspect`: the cost of a config as tables, and the state of a workdir."""

import collections
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import rich.console
import rich.table
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.display.tables import output_console, result_table
from transformer_jax.efficiency.time_spent import TimeSpent, read_stretches
from transformer_jax.models import build_model, no_decoding
from transformer_jax.profiling.cost_report import CostReport, Parameter, StepCost, cost_report
from transformer_jax.profiling.state_size import StateSize, config_state
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.fingerprint import fingerprint
from transformer_jax.storage.seed_checkpoints import open_checkpoints
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train_state import init_state


def inspect_config(
    config: ExperimentConfig,
    devices: int | None = None,
    console: rich.console.Console | None = None,
) -> None:
    """Print the cost of a config; arguments and errors as `cost_report`."""
    report = cost_report(config, devices)
    components = config_lib.resolve(config)
    state = config_state(components)
    console = console or output_console()
    mesh = ' × '.join(f'{axis} {size}' for axis, size in report.mesh.items())
    console.print(f'mesh: {mesh} = {math.prod(report.mesh.values())} devices', highlight=False)
    tables = [
        _parameter_table(report),
        _memory_table(report),
        _step_table(
            'training step, by batch shape (source and target alike, padding included)',
            report.steps,
        ),
    ]
    if state:
        tables.append(_state_table(state, config.model.dtype))
    if report.growth:
        lengths = [cost.length for cost in report.growth]
        tables.append(
            _step_table(
                'one sequence, source and target alike, as its length grows',
                report.growth,
                [config_state(components, length) for length in lengths] if state else (),
            )
        )
    for table in tables:
        console.print(table)
    if why := no_decoding(components.architecture):
        console.print(f'decoding state: no decoding, {why}', highlight=False, markup=False)


def inspect_workdir(path: epath.PathLike, console: rich.console.Console | None = None) -> None:
    """Print a run's newest intact step, its best step, where its time went, and its hash.

    The last line is `sha256 HEX  step N` of the newest step. The hash covers parameters, optimizer
    state, rng and data position, and does not depend on the devices of the run: two runs that ended
    in the same state print the same line. No file is changed.

    Raises:
        ConfigError: not the workdir of a run, or its config.json does not fit its checkpoints.
        WorkdirError: there is no intact checkpoint.
    """
    workdir = Workdir(path)
    components = config_lib.resolve(
        config_lib.from_stored(workdir.read_config(), workdir.config_path)
    )
    checkpoints = open_checkpoints(workdir)
    model = build_model(components.architecture.unscanned())  # as checkpoints have its layers
    # Without shardings: all arrays are read to the first device, whatever mesh the run had.
    abstract = nn.meta.unbox(jax.eval_shape(functools.partial(init_state, components, model)))
    newest, state, meta = checkpoints.restore(abstract)
    best = checkpoints.best_step()
    print_line = functools.partial(
        (console or output_console()).print,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
    print_line(f'workdir {workdir.path}')
    print_line(f'newest  step {newest} of {components.config.train.steps}')
    print_line('best    ' + ('none recorded' if best is None else f'step {best}'))
    if stretches := read_stretches(workdir.times_path):
        for line in TimeSpent(stretches).lines():
            print_line(line)
    print_line(f'sha256 {fingerprint(state, meta["data"])}  step {newest}')


def _parameter_table(report: CostReport) -> rich.table.Table:
    """Make a table with one line for all layers that are alike.

    A dimension that is cut shows the mesh axes after its logical axis, as in embed/fsdp.
    """
    groups = collections.defaultdict(list)
    for p in report.parameters:
        axes = ' '.join(
            '/'.join((axis, *cut)) for axis, cut in zip(p.axes, p.cut_over, strict=True)
        )
        path = re.sub(r'_\d+(?=\.)', '_*', p.path)
        groups[path, f'{p.dtype}[{", ".join(map(str, p.shape))}]', axes].append(p)

    def row(cells: tuple[str, str, str], members: Sequence[Parameter]) -> tuple[str, ...]:
        return (
            *cells,
            str(len(members)),
            f'{sum(p.count for p in members):,}',
            _bytes(sum(p.bytes_per_device for p in members)),
        )

    table = result_table(
        'parameters',
        ('path', 'array', 'axes/split over', 'arrays', 'count', 'bytes per device'),
        [row(cells, members) for cells, members in groups.items()],
        text_columns=3,
        overflow='fold',
    )
    table.add_section()
    embedding = [p for p in report.parameters if p.is_embedding]
    others = [p for p in report.parameters if not p.is_embedding]
    table.add_row(*row(('embedding', '', ''), embedding))
    table.add_row(*row(('non-embedding', '', ''), others))
    table.add_row(*row(('all', '', ''), report.parameters))
    return table


def _step_table(
    title: str, costs: Sequence[StepCost], states: Sequence[StateSize | None] = ()
) -> rich.table.Table:
    """Make a table of costs; `states`: a column of the decoding states at the same lengths."""
    heads = ['rows', 'length', 'FLOPs per step', 'FLOPs per target token', 'activations per device']
    rows = [
        [
            f'{cost.rows:,}',
            f'{cost.length:,}',
            _flops(cost.flops),
            _flops(cost.flops_per_token),
            _bytes(cost.activation_bytes),
        ]
        for cost in costs
    ]
    if states:
        heads.append('decoding state')
        for row, state in zip(rows, states, strict=True):
            row.append(_bytes(state.bytes) if state else '')
    return result_table(title, heads, rows, text_columns=0)


def _state_table(state: StateSize, dtype: str) -> rich.table.Table:
    """Make a table of a decoding state, with one line for adjacent layers that are alike."""

    def row(name: str, attention: str, past: int, source: int) -> tuple[str, ...]:
        encoded = _bytes(source) if state.source_length else '–'
        return name, attention, _bytes(past), encoded, _bytes(past + source)

    rows = []
    for alike, group in itertools.groupby(state.layers, lambda layer: layer.sizes):
        first, *others = [layer.name for layer in group]
        rows.append(row(f'{first} … {others[-1]}' if others else first, *alike))
    also = ' after a source of as many' if state.source_length else ''
    table = result_table(
        f'decoding state of one sequence of {state.length:,} tokens{also}, model.dtype={dtype}',
        ('each of', 'self-attention', 'past', 'source', 'together'),
        rows,
        text_columns=2,
        overflow='fold',
    )
    table.add_section()
    table.add_row(*row('all layers', '', state.past_bytes, state.source_bytes))
    table.caption = f'and {_bytes(state.index_bytes)} of positions, segments and indices'
    table.caption_justify = 'left'
    return table


def _memory_table(report: CostReport) -> rich.table.Table:
    table = result_table(
        'memory per device, estimated',
        ('part', 'bytes'),
        [(name, _bytes(size)) for name, size in report.memory().items()],
        overflow='fold',
    )
    table.add_section()
    table.add_row('together', _bytes(sum(report.memory().values())))
    return table


def _with_unit(number: float, base: int, units: tuple[str, ...]) -> str:
    """Format a number with the largest unit that leaves at least 1 before the point."""
    exponent = min(int(math.log(max(number, 1), base)), len(units) - 1)
    return f'{number / base**exponent:.{2 if exponent else 0}f} {units[exponent]}'


_bytes: Callable[[float], str] = functools.partial(
    _with_unit, base=1024, units=('B', 'KiB', 'MiB', 'GiB', 'TiB')
)
_flops: Callable[[float], str] = functools.partial(
    _with_unit, base=1000, units=('', 'k', 'M', 'G', 'T', 'P', 'E')
)
