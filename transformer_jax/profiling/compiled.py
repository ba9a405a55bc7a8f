"""What a compiled program says of itself: memory, collectives, kernels, FLOPs, bytes.

XLA's own cost analysis counts the body of a loop once, and the inside of a kernel not at all. Here
loops count as often as they run, as far as their text says it. All numbers are per device.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_jax.profiling.collectives import (
    COLLECTIVES,
    TPU_REDUCE_SCATTER,
    Collective,
    by_kind,
    collective_kind,
    read_collective,
)
from transformer_jax.profiling.gpu_calls import (
    CUDNN_ATTENTION,
    CUDNN_MASKED,
    call_products,
    call_target,
)
from transformer_jax.profiling.hlo import (
    Computation,
    Instruction,
    Module,
    parse_module,
    products,
    trip_count,
)

# Instructions that move nothing themselves.
FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
    'call', 'call-start', 'async-start', 'after-all', 'partition-id', 'replica-id', 'iota',
    'opt-barrier',
)  # fmt: skip
TPU_KERNEL, GPU_KERNELS = 'tpu_custom_call', ('__cudnn', '__cublas', '__gpu$', 'triton')
TRITON_PRODUCT = re.compile(r'"kind":"__triton_(?:nested_)?gemm')


@dataclasses.dataclass(frozen=True)
class Work:
    """An operation: what it computes and what it moves between main memory and cores.

    Attributes:
        flops: of matrix products.
        bytes: read and written.
        count: how often it runs.
    """

    flops: int
    bytes: int
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        arguments: what the program is given, such as parameters and batch.
        temporaries: what it needs while it runs.
        peak: the most at any time; results that take the place of arguments count once.
    """

    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What a compiled program needs and does on one device.

    Attributes:
        memory: see `Memory`.
        works: operations that compute or move.
        collectives: by kind and axes.
        kernels: name to how many run.
    """

    memory: Memory
    works: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    kernels: dict[str, int]

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products that are visible: not those in kernels of Pallas."""
        return sum(work.count * work.flops for work in self.works)

    @property
    def bytes(self) -> int:
        """Bytes between main memory and cores."""
        return sum(work.count * work.bytes for work in self.works)


def read_compiled(compiled: Any, mesh: Mapping[str, int], packed: bool = True) -> CompiledProgram:
    """Read what `jax.stages.Compiled` says.

    Args:
        compiled: of a function whose devices are those of the mesh, in its order.
        mesh: axis to size.
        packed: see `hlo.Module`.
    """
    stats = compiled.memory_analysis()
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.argument_size_in_bytes + stats.temp_size_in_bytes + max(fresh, 0),
    )
    return read_text(compiled.as_text(), mesh, memory, packed)


def read_text(
    text: str, mesh: Mapping[str, int], memory: Memory, packed: bool = True
) -> CompiledProgram:
    """Read the text of a compiled program; arguments as `read_compiled`."""
    module = parse_module(text, packed)
    works, kernels = [], collections.Counter()
    # Pieces of one collective that overlaps with others' work share a channel and a size: it counts
    # once. A collective of another kind can have the same channel.
    channels: dict[tuple[str, str, int], Collective] = {}
    for computation, instruction, count in _executed(module, module.entry, 1):
        name = kernel_name(instruction)
        if name:
            kernels[name] += count
        kind = collective_kind(computation, instruction)
        if kind:
            found = read_collective(kind, computation, instruction, mesh, count)
            name = instruction.attribute('channel_id') or instruction.name
            channel = kind, name, found.bytes // max(count, 1)
            channels[channel] = max(channels.get(channel, found), found, key=lambda c: c.count)
    for computation, instruction, count in _executed(module, module.entry, 1, inside_fusions=False):
        work = Work(
            _flops(module, computation, instruction), moved(module, computation, instruction), count
        )
        if work.flops or work.bytes:
            works.append(work)
    return CompiledProgram(memory, tuple(works), by_kind(channels.values()), dict(kernels))


def kernel_name(instruction: Instruction) -> str:
    """Name the kernel that an instruction runs and XLA has not written; '' where it runs none."""
    if instruction.opcode == 'fusion':
        return 'triton product' if TRITON_PRODUCT.search(instruction.attributes) else ''
    target = call_target(instruction)
    if target == TPU_KERNEL:  # The name of the instruction is that of the Pallas function.
        return f'mosaic {instruction.name.partition(".")[0]}'
    return target if any(part in target for part in GPU_KERNELS) else ''


def _executed(
    module: Module, name: str, count: int, inside_fusions: bool = True
) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yield every instruction that runs, with its computation and how often it runs."""
    computation = module.computations[name]
    for instruction in computation.instructions:
        yield computation, instruction, count
        match instruction.opcode:
            case 'while':
                trips = count * trip_count(module, instruction)
                for body in instruction.called('body'):
                    yield from _executed(module, body, trips, inside_fusions)
            case 'conditional':
                yield from _executed(module, _branch(module, instruction), count, inside_fusions)
            case 'call' | 'call-start' | 'async-start':
                for called in instruction.called('to_apply', 'calls'):
                    yield from _executed(module, called, count, inside_fusions)
            case 'fusion' if inside_fusions:
                for called in instruction.called('calls'):
                    yield from _executed(module, called, count)


def _branch(module: Module, instruction: Instruction) -> str:
    """Name the branch of a conditional that counts: that with the most FLOPs.

    cuDNN's engine has one for packed rows, with the mask as a matrix, and one for others.
    """
    branches = instruction.called('branch_computations') or (
        *instruction.called('true_computation'),
        *instruction.called('false_computation'),
    )

    def flops(name: str) -> int:
        return sum(n * _products(c, i) for c, i, n in _executed(module, name, 1))

    def runs(name: str) -> bool:
        targets = [call_target(i) for _, i, _ in _executed(module, name, 1)]
        attention = [target for target in targets if target.startswith(CUDNN_ATTENTION)]
        masked = any(target.startswith(CUDNN_MASKED) for target in attention)
        return bool(attention) and masked == module.packed

    return max(list(filter(runs, branches)) or branches, key=flops)


def _flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Count the FLOPs of an instruction, and of all inside it if it is a fusion."""
    if instruction.opcode != 'fusion':
        return _products(computation, instruction)
    return sum(
        _products(inner, i)
        for called in instruction.called('calls')
        for inner, i, _ in _executed(module, called, 1)
    )


def _products(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == 'custom-call':
        return call_products(computation, instruction)
    return products(computation, instruction)


def moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Count the bytes that an instruction moves between main memory and cores.

    Operands and results count once each. Of an operand that is only sliced, the slices count; of a
    result that is an update in place, the update.
    """
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith('-done') or opcode.removesuffix('-start') in COLLECTIVES:
        return 0
    operands = [
        computation.by_name[name] for name in instruction.operands if name in computation.by_name
    ]
    if opcode in ('copy-start', 'slice-start'):  # Its result holds the source, too.
        target = instruction.arrays[opcode == 'slice-start']
        return target.bytes * (operands[0].arrays[0].in_memory + target.in_memory)
    if opcode == 'dynamic-slice':
        return 2 * instruction.bytes
    if opcode == 'dynamic-update-slice':
        return 2 * operands[1].bytes
    called = instruction.called('calls') if opcode == 'fusion' else ()
    inner = module.computations[called[0]] if called else None
    if inner and inner.name.startswith(TPU_REDUCE_SCATTER):
        return 0
    read = sum(
        _read(inner, index, operand) if inner else _in_memory(operand)
        for index, operand in enumerate(operands)
    )
    return read + (_written(inner, instruction) if inner else _in_memory(instruction))


def _in_memory(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.in_memory)


def _read(inner: Computation, index: int, operand: Instruction) -> int:
    """Count what a fusion reads of an operand."""
    whole = _in_memory(operand)
    users = inner.users[inner.parameters[index].name]
    if not whole or not users:
        return whole
    if all(user.opcode in ('dynamic-slice', 'slice', 'gather') for user in users):
        return min(whole, sum(user.bytes for user in users))
    if all(user.opcode == 'dynamic-update-slice' for user in users):
        return min(whole, sum(inner.by_name[user.operands[1]].bytes for user in users))
    return whole


def _written(inner: Computation, instruction: Instruction) -> int:
    """Count what a fusion writes."""
    root = inner.by_name[inner.root]
    if root.opcode == 'dynamic-update-slice':
        return inner.by_name[root.operands[1]].bytes
    return _in_memory(instruction)
