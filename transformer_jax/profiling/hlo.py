"""The text of a compiled program (HLO), read into computations and instructions.

Only what the counts of `compiled` need is read: shapes, operands, attributes.
"""

import dataclasses
import functools
import math
import re

import numpy as np

BYTES = {'pred': 1, 'token': 0, 'bf16': 2, 'c64': 8, 'c128': 16}  # s8, u32, f8e4m3fn, …: by digits
HEADER = re.compile(r'^(ENTRY )?%?(\S+) \(.*\{$')
END = re.compile(r'\n\}(?:, execution_thread="\w+")?(?=\n|$)')
INSTRUCTION = re.compile(r'^  (ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*)$', re.DOTALL)
ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
        dtype: as in the text, 'bf16'.
        shape: of the array.
        in_memory: whether it lies in the device's main memory; a TPU keeps some arrays in the
            memory of its core, written S(1).
    """

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool = True

    @property
    def bytes(self) -> int:
        """Return the size of the array."""
        return math.prod(self.shape) * _itemsize(self.dtype)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: of the instruction.
        arrays: of the result; several for a tuple.
        opcode: 'dot', 'fusion', 'all-gather-start', …
        operands: names of instructions of the same computation.
        attributes: the rest of the line.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, name: str) -> str:
        """Return the text after `name=` up to the next space or comma outside of braces, or ''."""
        found = re.search(rf'\b{name}=(\{{[^{{}}]*\}}|\[[^\]]*\]|[^\s,]+)', self.attributes)
        return found[1] if found else ''

    def called(self, *names: str) -> tuple[str, ...]:
        """Name the computations in the first of some attributes, such as 'calls', that is there."""
        texts = (self.attribute(name).strip('{}') for name in names)
        text = next(filter(None, texts), '')
        return tuple(name.strip().lstrip('%') for name in text.split(',') if name.strip())

    @property
    def bytes(self) -> int:
        """Return the size of the result."""
        return sum(array.bytes for array in self.arrays)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions, the last one or that marked ROOT is the result."""

    name: str
    instructions: tuple[Instruction, ...]
    root: str

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Every instruction by its name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters in order."""
        found = [i for i in self.instructions if i.opcode == 'parameter']
        return sorted(found, key=lambda i: int(i.operands[0]))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.by_name}
        for instruction in self.instructions:
            for operand in set(instruction.operands) & users.keys():
                users[operand].append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the one that runs first.
        packed: whether rows of its batches hold several texts. That decides which of its two
            branches cuDNN's engine runs.
    """

    computations: dict[str, Computation]
    entry: str
    packed: bool = True


def parse_module(text: str, packed: bool = True) -> Module:
    """Read the text of `compiled.as_text()`; `packed` as in Module."""
    computations, entry = {}, ''
    for block in END.split(text):
        lines = block.split('\n')
        start = next((n for n, line in enumerate(lines) if HEADER.match(line)), None)
        if start is None:
            continue
        header = HEADER.match(lines[start])
        assert header is not None
        found, root = _instructions(lines[start + 1 :])
        computations[header[2]] = Computation(header[2], found, root)
        if header[1]:
            entry = header[2]
    return Module(computations, entry, packed)


def trip_count(module: Module, loop: Instruction) -> int:
    """Return how often a while loop runs at most; 1 where its text does not say.

    Loops of `lax.scan` count from 0 up to a constant of their condition, by 1; those in which a
    TPU sends pieces of an array while it multiplies others may count by 2.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    pending, limits, compares = list(loop.called('condition')), [1], False
    while pending:
        for instruction in module.computations[pending.pop()].instructions:
            pending += instruction.called('calls', 'to_apply')
            compares |= 'direction=LT' in instruction.attributes
            if instruction.opcode == 'constant' and instruction.arrays[0].dtype in ('s32', 'u32'):
                limits += [int(value) for value in instruction.operands if value.isdecimal()]
    return math.ceil(max(limits) / _increment(module, loop)) if compares else 1


def _increment(module: Module, loop: Instruction) -> int:
    """Return what a while loop adds to its counter; 1 where its text does not say."""
    condition = module.computations[loop.called('condition')[0]]
    compared = condition.by_name[condition.root].operands
    counters = [condition.by_name[name] for name in compared if name in condition.by_name]
    index = next((i.attribute('index') for i in counters if i.opcode == 'get-tuple-element'), '')
    body = module.computations[loop.called('body')[0]]
    results = body.by_name[body.root].operands
    if not index or int(index) >= len(results):
        return 1
    counter = body.by_name[results[int(index)]]
    if counter.opcode != 'add':
        return 1
    added = [body.by_name[name] for name in counter.operands if name in body.by_name]
    steps = [int(i.operands[0]) for i in added if i.opcode == 'constant']
    return max(steps, default=1)


def products(computation: Computation, instruction: Instruction) -> int:
    """Count the FLOPs of a matrix product or a convolution, 2 for each multiplication; else 0."""
    if instruction.opcode == 'dot':
        (out,), left = instruction.arrays, _shape(computation, instruction.operands[0])
        contracted = instruction.attribute('lhs_contracting_dims').strip('{}')
        sizes = (left[int(axis)] for axis in contracted.split(',') if axis)
        return 2 * math.prod(out.shape) * math.prod(sizes)
    if instruction.opcode != 'convolution':
        return 0
    left, right = (_shape(computation, name) for name in instruction.operands[:2])
    labels = instruction.attribute('dim_labels')
    left_labels, right_labels, out_labels = re.split('_|->', labels)
    sizes = dict(zip(out_labels, instruction.arrays[0].shape, strict=True))
    inputs = right[right_labels.index('i')]
    total = 2 * sizes['b'] * sizes['f'] * inputs
    window = instruction.attribute('window')
    for axis in filter(str.isdigit, out_labels):
        total *= _window_pairs(
            window,
            int(axis),
            left[left_labels.index(axis)],
            right[right_labels.index(axis)],
            sizes[axis],
        )
    return total


def _window_pairs(window: str, axis: int, size: int, kernel: int, out: int) -> int:
    """Count pairs of an output and a kernel position that meet an input, along one axis.

    TPUs write a batch of matrix products as a convolution, in which most pairs meet padding.
    """

    def part(name: str, default: str) -> str:
        found = re.search(rf'\b{name}=([\d_x-]+)', window)
        return found[1].split('x')[axis] if found else default

    low = int(part('pad', '0_0').split('_')[0])
    stride, spread, holes = (int(part(n, '1')) for n in ('stride', 'rhs_dilate', 'lhs_dilate'))
    index = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread - low
    return int(((index >= 0) & (index <= (size - 1) * holes) & (index % holes == 0)).sum())


def _instructions(lines: list[str]) -> tuple[tuple[Instruction, ...], str]:
    """Read the lines of a computation: (instructions, the name of the result)."""
    joined: list[str] = []
    for line in lines:
        if re.match(r'  (ROOT )?%?\S+ = ', line) or not joined:
            joined.append(line)
        else:  # A text attribute may have line feeds.
            joined[-1] += '\n' + line
    found, root = [], ''
    for line in joined:
        match = INSTRUCTION.match(line)
        if match is None:
            continue
        is_root, name, result, opcode, rest = match.groups()
        inside, attributes = _split_call(rest)
        if opcode in ('constant', 'parameter'):
            operands = (inside,)
        else:
            # Some compilers write the type before the name of an operand, others do not.
            operands = tuple(re.findall(r'%([\w.-]+)', inside))
        found.append(Instruction(name, _arrays(result), opcode, operands, attributes))
        root = name if is_root else root
    return tuple(found), root or (found[-1].name if found else '')


def _split_call(text: str) -> tuple[str, str]:
    """Split 'operands), attributes' at the parenthesis that closes the operands."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == '(') - (character == ')')
        if not depth:
            return text[:position], text[position + 1 :]
    return text, ''


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(map(int, filter(None, dims.split(',')))), 'S(1)' not in (layout or ''))
        for dtype, dims, layout in ARRAY.findall(text)
    )


def _itemsize(dtype: str) -> int:
    if dtype in BYTES:
        return BYTES[dtype]
    digits = re.search(r'\d+', dtype)
    return max(int(digits[0]) // 8, 1) if digits else 0


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    return computation.by_name[name].arrays[0].shape
