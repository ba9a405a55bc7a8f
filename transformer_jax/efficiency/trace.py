"""The largest operations of a trace that JAX's profiler wrote (Chrome's trace event format)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

OPS_THREAD = 'XLA Ops'  # of a TPU; its other threads show whole steps and modules


class Operation(NamedTuple):
    """What an operation of the compiled program took, in all of its calls and threads.

    Attributes:
        name: of the operation in the compiled program.
        origin: the place in the model that it comes from, '' where the trace does not say.
        seconds: without those of operations inside it, as in a loop.
        calls: how often it ran.
        share: of the seconds of all operations.
    """

    name: str
    origin: str
    seconds: float
    calls: int
    share: float


def largest_operations(trace: Mapping[str, Any], count: int = 10) -> list[Operation]:
    """Return the operations that took most time, the largest first.

    Args:
        trace: the content of a *.trace.json.
        count: how many, at most.
    """
    events = trace.get('traceEvents', [])
    threads = defaultdict(list)
    ops_threads = {
        (event['pid'], event['tid'])
        for event in events
        if event.get('name') == 'thread_name' and event['args'].get('name') == OPS_THREAD
    }
    for event in events:
        thread = event.get('pid'), event.get('tid')
        known = 'hlo_op' in event.get('args', {}) or thread in ops_threads
        if event.get('ph') == 'X' and known:
            threads[thread].append(event)
    seconds, calls, origins = defaultdict(float), defaultdict(int), {}
    for members in threads.values():
        for event, own in _own_times(members):
            arguments = event.get('args', {})
            name = arguments.get('hlo_op', event['name'])
            seconds[name] += own
            calls[name] += 1
            origins.setdefault(name, str(arguments.get('tf_op', '')))
    total = sum(seconds.values()) or 1.0
    names = sorted(seconds, key=lambda name: -seconds[name])[:count]
    return [
        Operation(name, origins[name], seconds[name], calls[name], seconds[name] / total)
        for name in names
    ]


def _own_times(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield each event of a thread with its seconds, without those of the events inside it."""
    open_events: list[list[Any]] = []  # [event, when it ends, microseconds of its own]
    for event in sorted(events, key=lambda event: (event['ts'], -event.get('dur', 0))):
        while open_events and open_events[-1][1] <= event['ts']:
            done, _, own = open_events.pop()
            yield done, 1e-6 * own
        duration = event.get('dur', 0)
        if open_events:
            open_events[-1][2] -= duration
        open_events.append([event, event['ts'] + duration, duration])
    for done, _, own in reversed(open_events):
        yield done, 1e-6 * own
