"""What a report says of tuning: the choice of each variant, its tries, and what to mind."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.ablation.choices import at_edges
from transformer_jax.ablation.tune import say_values
from transformer_jax.report import numbers

MOST_TRIES = 12  # that have a column of their own; the figures and tries.csv have them all
CHOSEN, FAILED = '✓', '✗'


def find_choices(experiment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the content of tuning.json by variants, of those that were tuned.

    Variants that share a config were tuned once: their names are joined by commas.
    """
    names: dict[str, list[str]] = {}
    for name, entry in experiment['variants'].items():
        if entry.get('tuning'):
            names.setdefault(entry['folder'], []).append(name)
    variants = experiment['variants']
    return {', '.join(members): variants[members[0]]['tuning'] for members in names.values()}


def tuning_heads(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the headings of the table of choices: variant, chosen, its score, and each try."""
    choices = [*find_choices(experiment).values()]
    label = experiment['tune']['metric']['label']
    return 'variant', 'chosen', label, *(say_values(each['values']) for each in _shown(choices))


def tuning_rows(experiment: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of choices, as text."""
    return [
        [
            variant,
            say_values(choice['chosen']),
            _score(choice['score']),
            *(_cell(each, choice) for each in _shown([choice])),
        ]
        for variant, choice in find_choices(experiment).items()
    ]


def tuning_notes(experiment: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader of the tables must know of tuning; nothing where nothing was tuned."""
    tune, choices = experiment.get('tune'), find_choices(experiment)
    if not tune:
        return
    yield _equal_tries(tune)
    if edges := [
        f'{variant} ({" and ".join(found)})'
        for variant, choice in choices.items()
        if (found := at_edges(tune['values'], choice['chosen']))
    ]:
        yield (
            '⚠ The best value lies at an edge of those that were tried, a better one may lie '
            f'beyond: {"; ".join(edges)}.'
        )
    if shared := [name for name, choice in choices.items() if len(_best(choice)) > 1]:
        yield f'Several tries share the best score, and the first was chosen: {", ".join(shared)}.'
    if failed := [*_failed(choices)]:
        yield f'Tries that failed, which count as the worst: {"; ".join(failed)}.'
    known = [entry.get('tuning') for entry in experiment['variants'].values()]
    if None in known:
        untuned = [
            name for name, entry in experiment['variants'].items() if not entry.get('tuning')
        ]
        yield f'Not tuned yet: {", ".join(untuned)}.'
    runs = [run for choice in choices.values() for each in choice['tries'] for run in each['runs']]
    if runs:
        seconds = sum(run['wall_seconds'] or 0.0 for run in runs)
        yield f'The {len(runs)} runs of tuning took {numbers.seconds(seconds)} in all.'


def _equal_tries(tune: Mapping[str, Any]) -> str:
    count = 1
    for values in tune['values'].values():
        count *= len(values)
    metric, seeds = tune['metric'], tune['seeds']
    direction = 'less is better' if metric['lower_is_better'] else 'more is better'
    tried = '; '.join(f'{key}: {", ".join(map(str, of))}' for key, of in tune['values'].items())
    mean = f'the mean over {len(seeds)} seeds' if len(seeds) > 1 else 'one seed'
    return (
        f'Every variant had the same {count} tries ({tried}). The best was chosen by '
        f'{metric["label"]} ({direction}), {mean} that no table has, before any run of a table.'
    )


def _shown(choices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the tries that have a column, of the first of some choices."""
    tries = choices[0]['tries'] if choices else []
    return tries if len(tries) <= MOST_TRIES else []


def _cell(each: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    if each['score'] is None:
        return f'{FAILED} failed'
    mark = f'{CHOSEN} ' if each['values'] == choice['chosen'] else ''
    return f'{mark}{_score(each["score"])}'


def _score(value: float) -> str:
    return f'{value:.4g}'.replace('-', numbers.MINUS)


def _best(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in choice['tries'] if each['score'] == choice['score']]


def _failed(choices: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for variant, choice in choices.items():
        for each in choice['tries']:
            for run in each['runs']:
                if run['failed']:
                    why = f'seed {run["seed"]}: {run["failed"]}'
                    yield f'{variant}, {say_values(each["values"])}, {why}'
