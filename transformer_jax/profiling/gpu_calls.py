"""Matrix products that a program for a GPU leaves to libraries: cuDNN's attention and cuBLAS."""

import math
import re

import numpy as np

from transformer_jax.profiling.hlo import Computation, Instruction

TARGET = re.compile(r'custom_call_target="([^"]+)"')
CUDNN_ATTENTION, CUDNN_MASKED, CUBLAS = '__cudnn$fmha', '__cudnn$fmhaScaleBias', '__cublas$'
# Of the scores' size, as flash attention has them: forward scores and values; backward the scores
# again, then the gradients of values, weights, queries and keys.
FORWARD, BACKWARD = 2, 5


def call_target(instruction: Instruction) -> str:
    """Name the function that a custom call runs; '' for other instructions."""
    if instruction.opcode != 'custom-call':
        return ''
    found = TARGET.search(instruction.attributes)
    return found[1] if found else ''


def call_products(computation: Computation, instruction: Instruction) -> int:
    """Count the FLOPs of the matrix products in a library's call, 2 for each multiplication.

    Pairs that causality or a window hides do not count: cuDNN skips them tile by tile. With the
    mask as a matrix it computes all.
    """
    target = call_target(instruction)
    if target.startswith(CUDNN_ATTENTION):
        q, k, v = (_shape(computation, name) for name in instruction.operands[:3])
        count = BACKWARD if target.endswith('Backward') else FORWARD
        batch, length, heads, size = q
        pairs = _visible_pairs(instruction.attributes, length, k[1])
        return count * batch * heads * pairs * (size + v[3])
    if target.startswith(CUBLAS):
        left = _shape(computation, instruction.operands[0])
        contracted = _numbers(instruction.attributes, 'lhs_contracting_dimensions')
        out = instruction.arrays[0].shape  # the others are a workspace and a bias's gradient
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    return 0


def _visible_pairs(attributes: str, length: int, keys: int) -> int:
    mask = re.search(r'"mask_type":\s*"(\w+)"', attributes)
    if not mask or not mask[1].endswith('CAUSAL'):
        return length * keys
    window = re.search(r'"sliding_window_length":\s*"?(\d+)', attributes)
    reach = int(window[1]) if window and int(window[1]) else keys
    last = np.minimum(np.arange(length), keys - 1)
    return int(np.minimum(last + 1, reach).sum())


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(rf'"{name}":\s*\[([^\]]*)\]', attributes)
    return [int(number) for number in re.findall(r'\d+', found[1])] if found else []


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    return computation.by_name[name].arrays[0].shape
