"""Collectives of a compiled program: their kind, the mesh axes that they cross, their bytes."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from transformer_jax.profiling.hlo import Computation, Instruction

COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
)
GROUPS = re.compile(
    r'(?:replica_groups|source_target_pairs)='
    r'(mesh\[[^\]]*\](?:,\s*device_ids=\([^{]*\))?\s*\{[^}]*\}|\[[^\s]*|\{\{.*?\}\}|\{\})'
)
# A TPU writes a reduce-scatter as a fusion of this name: an all-reduce and the cut of its result.
TPU_REDUCE_SCATTER = 'all-reduce-scatter'


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same mesh axes.

    Attributes:
        kind: one of COLLECTIVES.
        axes: of the mesh, those along which devices exchange; empty where there is but one device.
        count: how many run.
        bytes: what they carry together: of an all-gather the result, of the others the operand.
        sent: what each device sends, by rings: (n − 1)/n of the bytes, twice for an all-reduce.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    sent: int


def collective_kind(computation: Computation, instruction: Instruction) -> str:
    """Name the collective that an instruction is, or begins; '' where it is none."""
    kind = instruction.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
        return ''
    if kind == 'all-reduce' and computation.name.startswith(TPU_REDUCE_SCATTER):
        return 'reduce-scatter'
    return kind


def read_collective(
    kind: str,
    computation: Computation,
    instruction: Instruction,
    mesh: Mapping[str, int],
    count: int,
) -> Collective:
    """Read a collective that runs `count` times; other arguments as `read_text` and above."""
    found = GROUPS.search(instruction.attributes)
    groups = found[1] if found else ''
    axes = group_axes(groups, mesh)
    operands = sum(
        computation.by_name[name].bytes
        for name in instruction.operands
        if name in computation.by_name
    )
    carried = operands
    if kind == 'all-gather':  # The beginning of one also returns what it was given.
        begins = instruction.opcode.endswith('-start')
        carried = instruction.bytes - (operands if begins else 0)
    devices = int(np.prod([mesh[axis] for axis in axes]))
    share = 1.0 if kind == 'collective-permute' else (devices - 1) / devices
    sent = (2 if kind == 'all-reduce' else 1) * share * carried
    return Collective(kind, axes, count, count * carried, round(count * sent))


def by_kind(found: Iterable[Collective]) -> tuple[Collective, ...]:
    """Add up the collectives of one kind over the same axes; those of one device are none."""
    groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        if collective.axes:
            groups[collective.kind, collective.axes].append(collective)
    return tuple(
        Collective(
            kind,
            axes,
            sum(c.count for c in members),
            sum(c.bytes for c in members),
            sum(c.sent for c in members),
        )
        for (kind, axes), members in sorted(groups.items())
    )


def group_axes(groups: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Name the mesh axes along which the devices of a collective differ.

    Args:
        groups: of the text: `{{0,1},{2,3}}` (also pairs of source and target), `[2,4]<=[8]`,
            `[4,2]<=[2,4]T(1,0)`, or `mesh['a'=2,'b'=4] {'b'}`, also with the order of its devices,
            `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`; '' or `{}`: all devices.
        mesh: axis to size.
    """
    sizes = tuple(mesh.values())
    ids = _groups(groups, int(np.prod(sizes)))
    coordinates = np.stack(np.unravel_index(ids, sizes))
    varies = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, differs in zip(mesh, varies, strict=True) if differs)


def _groups(text: str, devices: int) -> np.ndarray:
    """Read groups of devices: [groups, devices of one]."""
    named = re.match(r'mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}', text)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        inside = re.findall(r"'([^']+)'", named[3])
        order = [axis for axis in sizes if axis not in inside] + inside
        ids = _ids(named[2], devices) if named[2] else np.arange(devices)
        grid = ids.reshape(tuple(sizes.values()))
        grid = grid.transpose([list(sizes).index(axis) for axis in order])
        return grid.reshape(-1, int(np.prod([sizes[axis] for axis in inside])))
    iota = re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    if iota:
        shape, source = (tuple(map(int, part.split(','))) for part in iota.groups()[:2])
        grid = np.arange(devices).reshape(source)
        if iota[3]:
            grid = grid.transpose(tuple(map(int, iota[3].split(','))))
        return grid.reshape(shape)
    listed = re.findall(r'\{([\d,]+)\}', text)
    if listed:
        return np.array([list(map(int, group.split(','))) for group in listed])
    return np.arange(devices)[None]


def _ids(text: str, devices: int) -> np.ndarray:
    """Read an order of devices: `[2,8]T(1,0)`, or a list of their numbers."""
    iota = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    if not iota:
        return np.array([int(number) for number in re.findall(r'\d+', text)])
    grid = np.arange(devices).reshape(tuple(map(int, iota[1].split(','))))
    return grid.transpose(tuple(map(int, iota[2].split(',')))) if iota[2] else grid
