"""Parse the spec strings of an experiment: here, once, and nowhere below."""

import dataclasses
from typing import Any

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.attention.engines import SiteSpec, resolve_engine
from transformer_jax.config.checks import attention_key, check_combinations
from transformer_jax.config.components import Components
from transformer_jax.config.layout_checks import check_layout
from transformer_jax.config.values import check_values
from transformer_jax.data.batching import BATCHING
from transformer_jax.data.tasks import TASKS
from transformer_jax.layers.embedding import TIES
from transformer_jax.layers.feed_forward import FFNS
from transformer_jax.layers.norms import NORMS, PLACEMENTS
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.layers.recurrent import RNNS
from transformer_jax.models import MODELS
from transformer_jax.models.architecture import Architecture, LayerAttention
from transformer_jax.optim import OPTIMIZERS, SCHEDULES
from transformer_jax.partitioning.rules import parse_rules
from transformer_jax.positions import POSITIONS, Position
from transformer_jax.schema import ExperimentConfig, ModelConfig

# The keys whose values are specs, but for attention, whose values are patterns of layers.
SPECS = {
    'model.position': POSITIONS,
    'model.norm': NORMS,
    'model.ffn': FFNS,
    'model.rnn': RNNS,
    'data.task': TASKS,
    'data.batching': BATCHING,
    'optim.optimizer': OPTIMIZERS,
    'optim.schedule': SCHEDULES,
}


def resolve(config: ExperimentConfig, platform: str = '') -> Components:
    """Parse all specs of an experiment and check all that can be known before data is read.

    Args:
        config: the experiment.
        platform: that programs are compiled for: 'cpu', 'cuda' or 'tpu'; '': that of this machine.

    Raises:
        ConfigError: a value out of range, a spec that names nothing, or a combination that cannot
            run.
    """
    check_values(config)
    components = parse_components(config, platform)
    check_combinations(components)
    check_layout(components)
    return components


def parse_components(config: ExperimentConfig, platform: str = '') -> Components:
    """Parse all specs of an experiment, without checking that they can work together.

    Arguments as `resolve`.

    Raises:
        ConfigError: a spec that names nothing.
    """
    task = _parsed('data.task', config.data.task)
    return Components(
        config=config,
        architecture=resolve_architecture(
            config.model,
            config.data.vocab_size,
            len(task.classes()),
            config.parallel.mesh.context,
            platform,
            config.train.num_seeds,
        ),
        task=task,
        batching=_parsed('data.batching', config.data.batching),
        optimizer=_parsed('optim.optimizer', config.optim.optimizer),
        schedule=_parsed('optim.schedule', config.optim.schedule),
        rules=parse_rules(config.parallel.rules),
    )


def resolve_architecture(
    model: ModelConfig,
    vocab_size: int,
    num_classes: int = 0,
    context: int = 1,
    platform: str = '',
    seeds: int = 1,
) -> Architecture:
    """Build the architecture that the keys of a model describe.

    Args:
        model: the keys.
        vocab_size: of source and target alike.
        num_classes: of a classifier.
        context: over how many devices rows are cut, which decides what `model.engine=auto` is.
        platform: see `resolve`.
        seeds: how many are trained side by side, which decides it, too.

    Raises:
        ConfigError: a spec that names nothing, or an attention that cannot stand where it does.
    """
    row = MODELS[model.kind]
    position = _parsed('model.position', model.position)
    architecture = Architecture(
        kind=model.kind,
        vocab_size=vocab_size,
        num_classes=num_classes,
        d_model=model.d_model,
        d_ff=model.d_ff,
        heads=head_dims(model),
        encoder_layers=model.encoder_layers if 'encoder' in row.stacks else 0,
        decoder_layers=model.decoder_layers if 'decoder' in row.stacks else 0,
        encoder_attention=(),
        decoder_attention=(),
        cross_attention=(),
        position=position,
        norm=_parsed('model.norm', model.norm),
        placement=PLACEMENTS[model.norm_placement],
        ffn=_parsed('model.ffn', model.ffn),
        cell=_parsed('model.rnn', model.rnn),
        block=model.block,
        attention_bias=model.attention_bias,
        attention_dropout=model.attention_dropout,
        tied=TIES[model.tie_embeddings],
        pooling=model.pooling,
        towers=model.towers,
        embedding_scale=model.d_model**0.5 if model.embedding_scale == 'sqrt' else 1.0,
        embedding_norm=model.embedding_norm,
        logit_softcap=model.logit_softcap,
        dropout=model.dropout,
        dtype=model.dtype,
        scan_layers=model.scan_layers,
        remat=model.remat,
    )
    specs = {site: architecture.site_spec(site, context, seeds) for site in row.sites}
    attentions = {
        f'{site}_attention': _site_attention(model, site_spec, position, platform)
        for site, site_spec in specs.items()
    }
    return dataclasses.replace(architecture, **attentions)


def _parsed(key: str, text: str) -> Any:
    return spec.parse(text, SPECS[key], key)


def head_dims(model: ModelConfig) -> HeadDims:
    """Return the heads of a model, with the zeros of its keys resolved."""
    head_dim = model.head_dim or model.d_model // model.num_heads
    return HeadDims(
        model.num_heads,
        model.num_kv_heads or model.num_heads,
        head_dim,
        model.value_dim or head_dim,
    )


def _site_attention(
    model: ModelConfig, site: SiteSpec, position: Position, platform: str
) -> tuple[LayerAttention, ...]:
    layers = model.encoder_layers if site.name == 'encoder' else model.decoder_layers
    key = attention_key(model, site.name)
    pattern = spec.parse_pattern(getattr(model, key.removeprefix('model.')), KINDS, key)
    if site.name == 'cross':  # Positions of two sequences do not compare.
        position = Position()
    kinds = (pattern[layer % len(pattern)] for layer in range(layers))
    return tuple(
        LayerAttention(kind, position, resolve_engine(model.engine, kind, position, site, platform))
        for kind in kinds
    )
