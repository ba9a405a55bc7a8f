"""The checks of what follows the colon of a configuration file: configs/listops.py:small."""

from collections.abc import Iterable

from transformer_jax import spec
from transformer_jax.errors import ConfigError


def check_choice(what: str, given: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless a part of an argument is one of some choices.

    Args:
        what: the part is, for the message: 'size'.
        given: the part.
        choices: what it may be.
    """
    if given not in (known := list(choices)):
        raise ConfigError(f'{what} {given!r} is unknown: {spec.nearest(given, known)}')


def language_pair(given: str, languages: Iterable[str] = ()) -> list[str]:
    """Split 'en-de' into source and target; raise ConfigError if it is no pair of languages.

    Args:
        given: the pair.
        languages: that there are; none: any.
    """
    pair = given.split('-')
    if len(pair) != 2 or not all(pair):
        raise ConfigError(f'languages {given!r} are no pair: write source-target, as in en-de')
    if known := list(languages):
        for language in pair:
            check_choice('language', language, known)
    return pair
