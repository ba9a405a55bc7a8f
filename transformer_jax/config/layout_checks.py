"""Checks of how a model is laid out: layers in a scan, rows that are cut over devices."""

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.config.checks import attention_key
from transformer_jax.config.components import Components
from transformer_jax.data.batching import Packed
from transformer_jax.errors import ConfigError


def check_layout(components: Components) -> None:
    """Check that layers can be scanned, and rows cut, where the configuration asks for it.

    Raises:
        ConfigError: they cannot; names the key and what would work.
    """
    if components.config.model.scan_layers:
        _check_scan(components)
    if components.config.parallel.mesh.context > 1:
        _check_context(components)


def _check_scan(components: Components) -> None:
    """The layers of a scan must compute the same, with parameters of their own."""
    model, architecture = components.config.model, components.architecture
    if not architecture.sites:
        raise ConfigError(
            f'model.scan_layers=True: model.kind={model.kind!r} has no layers that could be '
            'scanned; set model.scan_layers=False'
        )
    for site, layer in architecture.sites:
        kind = architecture.attention_at(site, layer).kind
        if kind.reads_layer:
            raise ConfigError(
                f'model.scan_layers=True: {attention_key(model, site)}='
                f'{spec.text(kind, KINDS)!r} computes with the number of its layer, which a scan '
                'does not know; set model.scan_layers=False'
            )


def _check_context(components: Components) -> None:
    """Rows that are cut over devices need tokens that can be cut, and lengths that divide."""
    config, context = components.config, components.config.parallel.mesh.context
    cut = f'parallel.mesh.context={context}'
    if not components.architecture.sites:
        raise ConfigError(
            f'model.kind={config.model.kind!r} reads a row token by token, which {cut} cannot cut: '
            'set parallel.mesh.context=1'
        )
    if components.model_kind.predicts_class and components.architecture.pooling == 'first':
        raise ConfigError(
            f"model.pooling='first' puts a token before each row, and {cut} cannot cut that: set "
            "model.pooling='mean'"
        )
    # Each device has an early and a late piece of a row, see `engines.ring`.
    parts, lengths = 2 * context, components.batching.row_lengths()
    for length in lengths[-1:] if isinstance(components.batching, Packed) else lengths:
        if length % parts:
            below = length // parts * parts
            raise ConfigError(
                f'data.batching={config.data.batching!r} has rows of {length} tokens, which {cut} '
                f'cannot cut into {parts} pieces (two for each device); lengths that fit: '
                f'{f"{below} or " if below else ""}{below + parts}'
            )
