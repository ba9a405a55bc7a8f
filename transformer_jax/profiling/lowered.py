"""The programs of a run, traced for devices that need not be here, before they are compiled."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from transformer_jax import config as config_lib
from transformer_jax.config import Components
from transformer_jax.data.batching import Packed, padded_rows
from transformer_jax.efficiency.flops import traceable
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.programs import compile_decoder, compile_scores
from transformer_jax.models import abstract_params, build_model, dummy_batch
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.profiling import flops as costs
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.programs import SeedGroupProgram, make_program


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before it is compiled.

    Attributes:
        lowered: see `jax.jit(…).lower`.
        mesh: axis to size.
        rows: of the batch, all seeds, microbatches and devices together.
        length: of its source; of a decoder's too.
        tokens: target tokens, padding included; of a decoder the most that it can write.
        model_flops: of the products that the model asks for, of all devices; 0: not counted.
        kernel_flops: of the products inside kernels of Pallas, of all devices.
        packed: whether rows hold several texts.
    """

    lowered: Any
    mesh: dict[str, int]
    rows: int
    length: int
    tokens: int
    model_flops: float
    kernel_flops: float
    packed: bool = True


def lower(
    config: ExperimentConfig, command: str, platform: str, devices: Sequence[Any] = ()
) -> Lowered:
    """Trace a program of a run for devices; by default those of this machine.

    Args:
        config: the experiment.
        command: 'train', 'evaluate' or 'decode'.
        platform: of the devices.
        devices: to compile for.
    """
    components = config_lib.resolve(config, platform)
    if command == 'train':
        return _lower_step(components, devices)
    model = build_model(components.architecture)
    partitioner = Partitioner(config.parallel.mesh, components.rules, devices=devices)
    params = partitioner.abstract(abstract_params(model))
    length = components.batching.row_lengths()[-1]
    rows = max(config.evaluate.batch_tokens // length, 1)
    rows = padded_rows(rows, partitioner.rows_multiple)
    batch = _placed(partitioner, components, rows, length)
    forward = _model_flops(components, params, rows, length)
    kernels = costs.kernel_flops(components.architecture, rows, length, backward=False)
    mesh = dict(partitioner.mesh.shape)
    if command == 'evaluate':
        lowered = compile_scores(model, partitioner).lower(params, batch)
        return Lowered(
            lowered, mesh, rows, length, rows * length, forward, kernels, _packs(components)
        )
    if components.model_kind.predicts_class:
        raise ConfigError(f'--command=decode: model.kind={config.model.kind!r} writes no text')
    vocab_size = components.architecture.vocab_size
    decoder = compile_decoder(components, model, partitioner, vocab_size)
    rows_B = jax.ShapeDtypeStruct((rows,), 'int32', sharding=partitioner.batch_sharding)
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    source = batch.source_BS if components.model_kind.reads_source else batch.inputs_BT
    lowered = decoder.lower(params, source, source, source, key, rows_B)
    written = length + config.decode.max_extra_tokens
    return Lowered(lowered, mesh, rows, length, rows * written, 0.0, 0.0)


def _lower_step(components: Components, devices: Sequence[Any]) -> Lowered:
    config, seeds = components.config, components.config.train.num_seeds
    if config.parallel.mode == 'pmap':
        raise ConfigError(
            "parallel.mode='pmap' runs on the devices of this machine alone: "
            "set parallel.mode='jit'"
        )
    # The longest rows: all shapes have about as many tokens, and scores grow with the length.
    rows, length = max(costs.batch_shapes(components), key=lambda shape: shape[1])
    if seeds > 1:
        program = SeedGroupProgram(components, [config] * seeds, devices)
        live = jax.ShapeDtypeStruct((seeds,), bool, sharding=program.partitioner.stacked)
        more, params = (live,), program.single.abstract.params
    else:
        program = make_program(components, devices)
        more, params = (), program.abstract.params
    rows = padded_rows(rows, program.rows_multiple)
    batch = _placed(program.partitioner, components, rows, length)
    return Lowered(
        program.train_step.lower(program.abstract, batch, *more),
        dict(program.partitioner.mesh.shape),
        seeds * rows,
        length,
        seeds * rows * length,
        seeds * 3 * _model_flops(components, params, rows, length),
        seeds * costs.kernel_flops(components.architecture, rows, length, backward=True),
        _packs(components),
    )


def _packs(components: Components) -> bool:
    return isinstance(components.batching, Packed)


def _model_flops(components: Components, params: Any, rows: int, length: int) -> int:
    model = build_model(traceable(components.architecture))
    return costs.forward_flops(model, params, rows, length)


def _placed(partitioner: Partitioner, components: Components, rows: int, length: int) -> Any:
    """Describe a batch of one seed, or of all, as it is placed."""
    leading = () if partitioner.num_seeds == 1 else (partitioner.num_seeds,)
    batch = jax.eval_shape(lambda: dummy_batch(components.architecture, rows, length))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            (*leading, *a.shape), a.dtype, sharding=partitioner.batch_sharding
        ),
        batch,
    )
