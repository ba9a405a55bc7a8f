"""Where the time of a run went, over all of its starts: times.jsonl and what follows from it.

A line of times.jsonl is a `Stretch`. Lines are appended and never removed, so that what a SIGKILL
cost can be computed: metrics.jsonl drops the steps that are done again, times.jsonl keeps their
time. The time between the last line of a start and the kill is not recorded; it is at most that of
`train.log_every` steps, and counts as time between starts.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from transformer_jax.storage.json_files import NUMBER, Optional, read_json_lines

# What a start does but useful steps, each with its meaning. 'setup' begins a start.
CAUSES = {
    'setup': 'reading data, building the model',
    'compile': 'tracing and compiling the step',
    'restore': 'reading a checkpoint',
    'wait': 'waiting for data',
    'evaluate': 'scoring the validation split',
    'save': 'writing checkpoints',
    'profile': 'writing a trace',
}
STEPS, REDONE, BETWEEN = 'steps', 'redone', 'between starts'


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of a start.

    Attributes:
        first: how many steps were done at its beginning.
        last: and at its end.
        began: Unix time.
        ended: Unix time.
        seconds: by cause, of CAUSES; all other time was spent on steps.
        flops: of the steps that were done, matrix products of forward and backward pass, padding
            included; None in files of earlier versions.
    """

    first: int
    last: int
    began: float
    ended: float
    seconds: Mapping[str, float]
    flops: float | None = None

    @property
    def step_seconds(self) -> float:
        """The seconds that were spent on steps."""
        return max(self.ended - self.began - sum(self.seconds.values()), 0.0)


class TimeSpent:
    """The seconds of a run by what they were spent on.

    Attributes:
        seconds: by STEPS (steps that count), REDONE (steps that a later start did again) and
            CAUSES.
        between: seconds between the starts, which are part of no start.
        starts: how many there were.
    """

    def __init__(self, stretches: Iterable[Stretch] = ()):
        self.seconds: dict[str, float] = defaultdict(float)
        self.between, self.starts = 0.0, 0
        self._done: list[tuple[int, int, float]] = []  # (first, last, seconds) of steps that count
        self._ended = float('inf')
        for stretch in stretches:
            self.add(stretch)

    @property
    def total(self) -> float:
        """The seconds of all starts."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share of the total that was spent on steps that count; 0 without any time."""
        return self.seconds[STEPS] / self.total if self.total > 0 else 0.0

    def add(self, stretch: Stretch) -> None:
        """Count the stretch that follows; what it does again no longer counts as useful."""
        if 'setup' in stretch.seconds:
            self.starts += 1
        self.between += max(stretch.began - self._ended, 0.0)
        self._ended = stretch.ended
        while self._done and self._done[-1][1] > stretch.first:
            first, last, seconds = self._done.pop()
            kept = max(stretch.first - first, 0) / (last - first)
            self.seconds[STEPS] -= (1 - kept) * seconds
            self.seconds[REDONE] += (1 - kept) * seconds
            if kept:
                self._done.append((first, stretch.first, kept * seconds))
        for cause, seconds in stretch.seconds.items():
            self.seconds[cause] += seconds
        self.seconds[STEPS] += stretch.step_seconds
        if stretch.last > stretch.first:
            self._done.append((stretch.first, stretch.last, stretch.step_seconds))

    def lines(self) -> Iterator[str]:
        """Yield lines for a person: goodput, then the seconds and share of each cause."""
        total = self.total
        yield (
            f'time    {total:,.0f} s in {self.starts} start{"s" if self.starts != 1 else ""}, '
            f'goodput {self.goodput:.1%}'
        )
        meanings = {STEPS: 'steps that count', REDONE: 'steps that were done again', **CAUSES}
        for cause, meaning in meanings.items():
            if self.seconds.get(cause):
                share = self.seconds[cause] / total
                yield f'  {cause:<9}{self.seconds[cause]:>9,.1f} s  {share:>6.1%}  {meaning}'
        if self.between:
            yield f'  not counted: {self.between:,.0f} s between starts'


def read_stretches(path: epath.Path) -> list[Stretch]:
    """Read a times.jsonl, but for lines that are damaged; none where there is no file.

    Raises:
        WorkdirError: the file cannot be read.
    """
    shape = {
        **{'first': int, 'last': int, 'began': NUMBER, 'ended': NUMBER, 'seconds': {str: NUMBER}},
        'flops': Optional((*NUMBER, None)),
    }
    lines = read_json_lines(path, shape, strict=False)
    return [Stretch(**{key: line[key] for key in shape if key in line}) for _, line in lines]
