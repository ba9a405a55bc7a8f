"""What varies with the seed of a run, from its configuration.

`train.seed` is read by: the first parameters and dropout (`train_state`), the order of the training
examples (`batching.Plan`), and decoding by sampling (`Evaluator.translate`). All else that is drawn
has a seed of its own or a fixed one, and is the same for all seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.data.tasks.base import TRANSLATION

# The keys that decide; a configuration without one of them says nothing.
KEYS = ('train.init_from', 'model.dropout', 'decode.method', 'decode.temperature')
FIXED = (
    'Equal for all seeds: splits, vocabulary, examples of generated tasks, and the random '
    'features, hashes and masks of attention kinds, which have seeds of their own.'
)


def seed_sources(
    config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> tuple[str, ...] | None:
    """Name what differs between the seeds of a configuration.

    Args:
        config: of a variant, flat.
        metrics: those of experiment.json: what is sampled counts only where it is scored.

    Returns:
        the names, such as ('initialization', 'order of the training data', 'dropout'); None where
        the configuration lacks a key that decides.
    """
    if any(key not in config for key in KEYS):
        return None
    scored = any(metric['name'] in TRANSLATION for metric in metrics)
    sampled = config['decode.method'] == 'sample' and config['decode.temperature']
    begins_with = config['train.init_from']
    varies = {
        'initialization': not begins_with,
        'initialization of what train.init_from lacks': begins_with,
        'order of the training data': True,
        'dropout': config['model.dropout'],
        'sampling of translations': sampled and scored,
    }
    return tuple(name for name, does in varies.items() if does)
