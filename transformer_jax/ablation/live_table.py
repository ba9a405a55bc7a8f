"""The progress of an ablation: a live table on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import rich.console
import rich.live
import rich.table
import rich.text
from etils import epath

from transformer_jax.ablation.results import last_event
from transformer_jax.ablation.settings import Setting
from transformer_jax.ablation.trial import Trial
from transformer_jax.display.progress import without_bars
from transformer_jax.display.tables import result_table
from transformer_jax.storage.metrics_writer import training_loss

ACTIVE = ('training', 'scoring', 'running elsewhere')
UNFINISHED = ('waiting', *ACTIVE)


class Planned(Protocol):
    """What is shown: the trials of a file under a root, those of a setting next to each other."""

    file: str
    root: epath.Path
    trials: list[Trial]


class LiveTable:
    """The states of trials: waiting, training, scoring, done, failed or running elsewhere.

    Attributes:
        states: trial -> its state, of the trials that are planned.
    """

    def __init__(self, plan: Planned, lacking: set[Trial], log: Callable[[str], None]):
        """Show a plan.

        Args:
            plan: what runs.
            lacking: the trials that are not done yet.
            log: receives the remarks where there is no terminal.
        """
        self._plan, self._log, self._remark = plan, log, ''
        self._console = rich.console.Console(stderr=True)
        self._begun, self._missing = time.monotonic(), len(lacking)
        self.states = {trial: 'waiting' if trial in lacking else 'done' for trial in plan.trials}

    def set_state(self, trial: Trial, state: str) -> None:
        """Set the state of a trial; trials that are not planned are not shown."""
        if trial in self.states:
            self.states[trial] = state

    @contextlib.contextmanager
    def displayed(self) -> Iterator[None]:
        """Show the table while inside, on a terminal; loops then draw no bars."""
        if not self._console.is_terminal or jax.process_index() != 0:
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

    def set_remark(self, trials: Sequence[Trial], line: str) -> None:
        """Show, or log, a remark about a trial, or about several in one program."""
        for trial in trials:
            if self.states.get(trial) == 'waiting':
                self.states[trial] = 'training'
        name = trials[0].name
        if len(trials) > 1:
            name = f'{trials[0].setting.folder}/{trials[0].group_name(trials)}'
        self._remark = f'{name}: {line}'
        if not self._console.is_terminal:
            self._log(self._remark)

    def table(self) -> rich.table.Table:
        """Make the table, with a row for each setting of the plan."""
        settings = dict.fromkeys(trial.setting for trial in self._plan.trials)
        return result_table(
            f'{self._plan.file} in {self._plan.root}',
            ('variant', 'seeds done', 'now', 'step', 'loss', 'minutes left'),
            [self._cells(setting) for setting in settings],
        )

    def _cells(self, setting: Setting) -> tuple[str, ...]:
        states = {trial: state for trial, state in self.states.items() if trial.setting == setting}
        counts = list(states.values())
        events = {
            trial: last_event(trial.workdir) for trial, state in states.items() if state in ACTIVE
        }
        failed = f'{counts.count("failed")} failed' if 'failed' in counts else ''
        cells = ', '.join(setting.variants), f'{counts.count("done")}/{len(counts)}'
        if not events:
            return *cells, failed, '', '', ''
        # The trial with the most steps: the others of its program may have stopped early.
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
            f'{float(training_loss(event)):.4f}',
            f'{left:.1f}',
        )

    def _renderable(self) -> rich.console.Group:
        states = list(self.states.values())
        ended = self._missing - sum(state in UNFINISHED for state in states)
        spent = (time.monotonic() - self._begun) / 60
        left = f', about {spent / ended * (self._missing - ended):.0f} left' if ended else ''
        line = f'{states.count("done")} of {len(states)} runs done; {spent:.0f} minutes{left}'
        remark = rich.text.Text(self._remark, 'dim', no_wrap=True, overflow='ellipsis')
        return rich.console.Group(self.table(), rich.text.Text(line), remark)
