"""Looks: the moments at which verdicts are taken of a table whose seeds grow.

Who adds seeds until a verdict comes finds one in the end, true or not. So an experiment states how
often verdicts will be taken, K, and each time they are taken at 5%/K: by Bonferroni's inequality
the chance of a false verdict at any of them is at most 5%. Where more looks are taken than were
planned, the k-th is at 5%/k, and `remark` says what that makes in all. After a pilot it is 4% in
place of 5%: seeds that were chosen by a spread are too few where the spread came out too small.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.ablation.many_to_one import LEVEL

AFTER_A_PILOT = 0.04  # such that it is 5% in all: docs/explanation/statistics.md, second table
Looks = Mapping[str, Any]  # of an experiment.json: {'planned': 2, 'taken': [{'seeds': 3, …}]}


def no_looks(planned: int = 1) -> dict[str, Any]:
    """Return the record of a table that nobody has looked at."""
    return {'planned': planned, 'taken': []}


def take_look(looks: Looks, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with one more look, if there are more seeds than at the last.

    Args:
        looks: the record.
        now: the number of seeds, the date and the commit.
    """
    taken = [*looks['taken']]
    if not taken or now['seeds'] > taken[-1]['seeds']:
        taken.append(dict(now))
    return {**looks, 'taken': taken}


def look_if_due(experiment: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record with the look that all runs together are; None where it is none.

    Args:
        experiment: the content of experiment.json.
        now: date and commit.
    """
    looks, pilot, seeds = experiment['looks'], experiment['pilot'], len(experiment['seeds'])
    if pilot and not 0 < pilot['planned'] <= seeds:
        return None
    after = take_look(looks, {'seeds': seeds, **now})
    return after if after != looks else None


def level(experiment: Mapping[str, Any]) -> float:
    """Return the chance of a false verdict that the last look may have.

    Args:
        experiment: the content of experiment.json.
    """
    looks = experiment.get('looks') or no_looks()
    whole = AFTER_A_PILOT if experiment.get('pilot') else LEVEL
    return whole / max(looks['planned'], len(looks['taken']), 1)


def remark(experiment: Mapping[str, Any]) -> str:
    """Say at which level verdicts are taken, and by which looks; '' for one that was planned."""
    looks = experiment.get('looks') or no_looks()
    planned, taken, at = looks['planned'], looks['taken'], level(experiment)
    if at == LEVEL:
        return ''
    said = 'A pilot came first. ' if experiment.get('pilot') else ''
    if max(planned, len(taken)) > 1:
        seeds = ', '.join(str(look['seeds']) for look in taken)
        said += f'Verdicts were taken with {seeds} seeds' if taken else 'No verdicts were taken yet'
        said += f'; {planned} looks were planned. ' if planned > 1 else '; one look was planned. '
    said += f'Verdicts are at {at:.2%}, the intervals are of {1 - at:.2%}.'
    if len(taken) > planned:
        in_all = sum(at * len(taken) / max(planned, number + 1) for number in range(len(taken)))
        said += (
            ' Seeds were added after a verdict that was to be the last: the chance of a false '
            f'verdict at any of these looks is up to {in_all:.1%}.'
        )
    return said
