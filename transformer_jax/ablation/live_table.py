"""What a person sees of an ablation that runs: a live table on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.live
import rich.table
import rich.text

from transformer_jax.ablation.plan import Plan, Row, Run
from transformer_jax.ablation.results import last_event
from transformer_jax.display.progress import without_bars
from transformer_jax.profiling.timing import result_table
from transformer_jax.training.seed_groups import group_name

IN_WORK = ('training', 'scoring', 'running elsewhere')


class Board:
    """The states of runs: waiting, training, scoring, done, failed, running elsewhere."""

    def __init__(self, plan: Plan, lacking: set[Run], log: Callable[[str], None]):
        self._plan, self._log, self._remark = plan, log, ''
        self._console = rich.console.Console(stderr=True)
        self._begun, self._missing = time.monotonic(), len(lacking)
        self.states = {run: 'waiting' if run in lacking else 'done' for run in plan.runs}

    def becomes(self, run: Run, state: str) -> None:
        """Takes in a state; of runs that were not asked for nothing is shown."""
        if run in self.states:
            self.states[run] = state

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, a terminal shows the table, and single runs draw nothing."""
        if not self._console.is_terminal:
            yield
            return
        with (
            without_bars(),
            rich.live.Live(
                get_renderable=self._renderable,
                console=self._console,
                refresh_per_second=1,
                vertical_overflow='ellipsis',
            ),
        ):
            yield

    def say(self, runs: Sequence[Run], line: str) -> None:
        """Takes a remark of a run in work, or of several side by side."""
        for run in runs:
            if self.states.get(run) == 'waiting':
                self.states[run] = 'training'
        self._remark = f'{runs[0].row.folder}/{group_name([run.seed for run in runs])}: {line}'
        if not self._console.is_terminal:
            self._log(self._remark)

    def table(self) -> rich.table.Table:
        """A line for each row of the plan."""
        rows = {run.row: None for run in self._plan.runs}
        return result_table(
            f'{self._plan.file} in {self._plan.root}',
            ('variant', 'seeds done', 'now', 'step', 'loss', 'minutes left'),
            [self._cells(row) for row in rows],
        )

    def _cells(self, row: Row) -> tuple[str, ...]:
        states = {run: state for run, state in self.states.items() if run.row == row}
        counts = list(states.values())
        events = {run: last_event(run.workdir) for run, state in states.items() if state in IN_WORK}
        failed = f'{counts.count("failed")} failed' if 'failed' in counts else ''
        cells = ', '.join(row.variants), f'{counts.count("done")}/{len(counts)}'
        if not events:
            return *cells, failed, '', '', ''
        # The furthest: beside it others may have stopped early.
        now = max(events, key=lambda run: events[run].get('step', 0))
        event, steps = events[now], row.config.train.steps
        seeds = ', '.join(str(run.seed) for run, state in states.items() if state == states[now])
        state = ', '.join(filter(None, (f'{states[now]} seed {seeds}', failed)))
        if not event:
            return *cells, state, '', '', ''
        left = (steps - event['step']) / event['steps_per_second'] / 60
        return (
            *cells,
            state,
            f'{event["step"]:,}/{steps:,}',
            f'{float(event["loss"]):.4f}',
            f'{left:.1f}',
        )

    def _renderable(self) -> rich.console.Group:
        ended = self._missing - sum(
            state in ('waiting', *IN_WORK) for state in self.states.values()
        )
        spent = (time.monotonic() - self._begun) / 60
        left = f', about {spent / ended * (self._missing - ended):.0f} left' if ended else ''
        counts = list(self.states.values())
        line = f'{counts.count("done")} of {len(counts)} runs done; {spent:.0f} minutes{left}'
        remark = rich.text.Text(self._remark, 'dim', no_wrap=True, overflow='ellipsis')
        return rich.console.Group(self.table(), rich.text.Text(line), remark)
