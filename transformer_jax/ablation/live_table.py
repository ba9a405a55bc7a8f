"""What a person sees of an ablation that runs: a live table on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.live
import rich.table
import rich.text

from transformer_jax.ablation.plan import Plan, Setting, Trial
from transformer_jax.ablation.results import last_event
from transformer_jax.display.progress import without_bars
from transformer_jax.display.tables import result_table
from transformer_jax.training.seed_groups import group_name

IN_WORK = ('training', 'scoring', 'running elsewhere')


class LiveTable:
    """The states of runs: waiting, training, scoring, done, failed, running elsewhere."""

    def __init__(self, plan: Plan, lacking: set[Trial], log: Callable[[str], None]):
        self._plan, self._log, self._remark = plan, log, ''
        self._console = rich.console.Console(stderr=True)
        self._begun, self._missing = time.monotonic(), len(lacking)
        self.states = {trial: 'waiting' if trial in lacking else 'done' for trial in plan.trials}

    def set_state(self, trial: Trial, state: str) -> None:
        """Takes in a state; of runs that were not asked for nothing is shown."""
        if trial in self.states:
            self.states[trial] = state

    @contextlib.contextmanager
    def displayed(self) -> Iterator[None]:
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

    def set_remark(self, runs: Sequence[Trial], line: str) -> None:
        """Takes a remark of a trial in work, or of several side by side."""
        for trial in runs:
            if self.states.get(trial) == 'waiting':
                self.states[trial] = 'training'
        self._remark = (
            f'{runs[0].setting.folder}/{group_name([trial.seed for trial in runs])}: {line}'
        )
        if not self._console.is_terminal:
            self._log(self._remark)

    def table(self) -> rich.table.Table:
        """A line for each row of the plan."""
        rows = {trial.setting: None for trial in self._plan.trials}
        return result_table(
            f'{self._plan.file} in {self._plan.root}',
            ('variant', 'seeds done', 'now', 'step', 'loss', 'minutes left'),
            [self._cells(setting) for setting in rows],
        )

    def _cells(self, setting: Setting) -> tuple[str, ...]:
        states = {trial: state for trial, state in self.states.items() if trial.setting == setting}
        counts = list(states.values())
        events = {
            trial: last_event(trial.workdir) for trial, state in states.items() if state in IN_WORK
        }
        failed = f'{counts.count("failed")} failed' if 'failed' in counts else ''
        cells = ', '.join(setting.variants), f'{counts.count("done")}/{len(counts)}'
        if not events:
            return *cells, failed, '', '', ''
        # The furthest: beside it others may have stopped early.
        now = max(events, key=lambda trial: events[trial].get('step', 0))
        event, steps = events[now], setting.config.train.steps
        seeds = ', '.join(
            str(trial.seed) for trial, state in states.items() if state == states[now]
        )
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
