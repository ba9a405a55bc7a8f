"""What a trained model can be asked for, which texts it reads, and how messages name them."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.data.tokenizers import require_unicode
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.models import MODELS


def require_ability(trained: TrainedRun, command: str) -> None:
    """Refuse a command that the kind of model cannot serve.

    Raises:
        ConfigError: the model cannot; the message says what it can.
    """
    kind = trained.config.model.kind
    if command not in MODELS[kind].commands:
        raise ConfigError(
            f'{command}: {trained.workdir.path} holds a model of kind {kind!r}, which cannot; its '
            f'commands are {", ".join(MODELS[kind].commands)} and evaluate'
        )


def require_one_text(trained: TrainedRun) -> None:
    """Refuse a model that reads two texts at once, where a call gives one; raises ConfigError."""
    if trained.model.architecture.towers > 1:
        raise ConfigError(
            f'model.towers={trained.model.architecture.towers}: {trained.workdir.path} holds a '
            'model of two texts, and here is one; give it both by the `apply` of its Flax module'
        )


def require_decoding(trained: TrainedRun, given: Mapping[str, Any]) -> None:
    """Refuse keys of `decode` where the model writes no translations.

    Raises:
        ConfigError: names the first key.
    """
    if given and not trained.data.task.translates:
        key, value = next(iter(given.items()))
        raise ConfigError(
            f'decode.{key}={value!r} has no effect: {trained.workdir.path} holds a model of kind '
            f'{trained.config.model.kind!r} that writes no translations'
        )


def check_text(trained: TrainedRun, text: str, name: str) -> None:
    """Refuse a text that the model cannot read, and log symbols that its vocabulary lacks.

    Args:
        trained: the model.
        text: what it shall read.
        name: of the text, in messages.

    Raises:
        DataError: it is no Unicode text, or has a symbol that is none of a synthetic task's.
    """
    require_unicode(text, name)
    tokenizer = trained.data.tokenizer
    if tokenizer.unknown(text):
        message = f'{name}: {tokenizer.explain_unknown(text)}'
        if tokenizer.is_fixed:
            raise DataError(message)
        trained.log(message)


def line_of_input(index: int) -> str:
    """Name a line of standard input, given its number from 0."""
    return f'standard input:{index + 1}'


def item_of_texts(index: int) -> str:
    """Name an item of the argument `texts`, given its number from 0."""
    return f'texts[{index}]'
