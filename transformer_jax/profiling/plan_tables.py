"""The plan of a run as tables, or as one JSON object."""

import dataclasses
import datetime
import math
from typing import Any

import rich.table

from transformer_jax.display.tables import output_console, result_table
from transformer_jax.profiling.compiled import CompiledProgram
from transformer_jax.profiling.plan import Attempt, Plan
from transformer_jax.storage.json_text import to_json

GIB, MIB = 2**30, 2**20


def print_plan(plan: Plan, as_json: bool) -> None:
    """Print a plan on standard output."""
    if as_json:
        print(to_json(summary(plan)))
        return
    console = output_console()
    for line in _headline(plan):
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for table in tables(plan):
        console.print(table)


def summary(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values: operations are summed, everything else is there."""
    attempts = []
    for attempt in plan.attempts:
        values = dataclasses.asdict(attempt) | {'fits': attempt.fits}
        if attempt.program is not None:
            values['program'] = {
                'memory': dataclasses.asdict(attempt.program.memory),
                'flops': _compiled_flops(attempt) / math.prod(attempt.mesh.values()),
                'bytes': attempt.program.bytes,
                'collectives': [dataclasses.asdict(c) for c in attempt.program.collectives],
                'kernels': attempt.program.kernels,
            }
        attempts.append(values)
    forecast = None if plan.forecast is None else dataclasses.asdict(plan.forecast)
    return dataclasses.asdict(dataclasses.replace(plan, attempts=(), forecast=None)) | {
        'attempts': attempts,
        'forecast': forecast,
    }


def tables(plan: Plan) -> list[rich.table.Table]:
    """Make the tables of a plan: what was compiled, then what the last program says."""
    made = [_attempt_table(plan)]
    last = plan.attempts[-1]
    if last.program is not None:
        made.append(_program_table(plan, last, last.program))
        if last.program.collectives:
            made.append(_collective_table(last.program))
    if plan.forecast is not None:
        made.append(_forecast_table(plan))
    return made


def _headline(plan: Plan) -> list[str]:
    last = plan.attempts[-1]
    mesh = ' × '.join(f'{axis} {size}' for axis, size in last.mesh.items())
    return [
        f'{plan.topology}: {plan.chips} chips, {plan.devices} devices; mesh {mesh}',
        f'{plan.command}: {last.rows} rows × {last.length} tokens, compiled, not run',
        _verdict(plan),
    ]


def _verdict(plan: Plan) -> str:
    first, last = plan.attempts[0], plan.attempts[-1]
    left = first.capacity - first.needed
    if first.fits:
        return f'fits: {_gib(first.needed)} of {_gib(first.capacity)} a device, {_gib(left)} left'
    told = f'does not fit: {_gib(-left)} too much of {_gib(first.capacity)} a device'
    if last.fits:
        return f'{told}; it fits with {last.change}'
    return f'{told}; nothing that was tried makes it fit: take more chips, or a smaller model'


def _attempt_table(plan: Plan) -> rich.table.Table:
    return result_table(
        'what was compiled; memory of a device in GiB',
        ('change', 'fits', 'needed', 'of', 'compiled in s'),
        [
            (
                attempt.change or 'as configured',
                'yes' if attempt.fits else 'no',
                f'{attempt.needed / GIB:.2f}',
                f'{attempt.capacity / GIB:.2f}',
                f'{attempt.seconds:.0f}',
            )
            for attempt in plan.attempts
        ],
        text_columns=2,
        overflow='fold',
    )


def _program_table(plan: Plan, attempt: Attempt, program: CompiledProgram) -> rich.table.Table:
    devices, memory = math.prod(attempt.mesh.values()), program.memory
    rows = [
        ('arguments', _gib(memory.arguments)),
        ('temporaries', _gib(memory.temporaries)),
        ('peak', _gib(memory.peak)),
        ('compiled FLOPs', _tera(_compiled_flops(attempt) / devices)),
    ]
    if attempt.model_flops:
        again = _compiled_flops(attempt) / attempt.model_flops
        rows.append(('model FLOPs', _tera(attempt.model_flops / devices)))
        rows.append(('compiled / model', f'{again:.3f}'))
    rows.append(('bytes to and from memory', _gib(program.bytes)))
    rows += [(f'kernel {name}', f'{count} ×') for name, count in sorted(program.kernels.items())]
    return result_table('the program, for one device', ('', 'value'), rows)


def _collective_table(program: CompiledProgram) -> rich.table.Table:
    return result_table(
        'collectives of a step, for one device',
        ('kind', 'mesh axes', 'count', 'MiB carried', 'MiB sent'),
        [
            (
                c.kind,
                ' × '.join(c.axes),
                f'{c.count}',
                f'{c.bytes / MIB:.1f}',
                f'{c.sent / MIB:.1f}',
            )
            for c in program.collectives
        ],
        text_columns=2,
    )


def _forecast_table(plan: Plan) -> rich.table.Table:
    forecast, peaks = plan.forecast, plan.peaks
    assert forecast is not None
    roofline = forecast.roofline
    rows = [
        ('compute', _ms(roofline.compute), f'at {peaks.flops / 1e12:.0f} TFLOP/s'),
        ('memory', _ms(roofline.memory), f'at {peaks.memory_rate / 1e9:.0f} GB/s'),
        ('interconnect', _ms(roofline.interconnect), f'at {peaks.link_rate / 1e9:.0f} GB/s sent'),
        ('step, at best', _ms(roofline.step), f'bound by {roofline.bound}'),
        ('tokens/s', f'{forecast.tokens_per_second:,.0f}', 'padding included'),
    ]
    if forecast.mfu:
        rows.append(('MFU, at most', f'{100 * forecast.mfu:.1f}%', ''))
    if plan.command == 'train':
        seconds = plan.steps * roofline.step
        duration = datetime.timedelta(seconds=round(seconds))
        rows.append((f'{plan.steps:,} steps', f'{duration}', 'without evaluation and saving'))
        if forecast.price:
            told = f'{plan.chips} chips at ${forecast.price:.2f} an hour'
            rows.append(('cost, at least', f'${forecast.cost:,.2f}', told))
    table = result_table('roofline', ('', 'value', 'peak of a device'), rows)
    table.columns[2].justify = 'left'
    table.caption, table.caption_justify = f'peaks: {plan.source}', 'left'
    return table


def _compiled_flops(attempt: Attempt) -> float:
    """Count what all devices compute: visible products, and those inside kernels."""
    assert attempt.program is not None
    return attempt.program.flops * math.prod(attempt.mesh.values()) + attempt.kernel_flops


def _gib(size: float) -> str:
    return f'{size / GIB:.2f} GiB'


def _tera(flops: float) -> str:
    return f'{flops / 1e12:.3f} T'


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:.2f} ms'
