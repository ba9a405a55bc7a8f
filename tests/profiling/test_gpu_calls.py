"""Calls of cuDNN and cuBLAS, and products of Triton, counted by hand in lines of real programs."""

import pytest

from transformer_jax.profiling.compiled import Memory, read_text
from transformer_jax.profiling.gpu_calls import call_products
from transformer_jax.profiling.hlo import parse_module

MESH = {'data': 4}
B, T, N, H = 8, 128, 2, 64
ARRAY = f'bf16[{B},{T},{N},{H}]{{3,2,1,0}}'


def attention(suffix='', mask='NO_MASK', window=0, keys=T):
    """An attention of cuDNN, as the compiler writes it, shortened."""
    k = f'bf16[{B},{keys},{N},{H}]{{3,2,1,0}}'
    return f"""%body (a: {ARRAY}) -> bf16[1] {{
  %q = {ARRAY} parameter(0)
  %k = {k} parameter(1)
  %v = {k} parameter(2)
  ROOT %c = (bf16[{B},{N},{T},{H}]{{3,1,2,0}}, f32[{B},{N},{T}]{{2,1,0}}, u8[0]{{0}}) \
custom-call(%q, %k, %v), custom_call_target="__cudnn$fmha{suffix}", \
backend_config={{"cudnn_fmha_backend_config": {{"algorithm": {{"workspace_size": "0"}}, \
"mask_type": "{mask}", "bmm1_dot_dimension_numbers": {{"lhs_contracting_dimensions": ["3"]}}, \
"sliding_window_length": {window}}}}}
}}
"""


def flops(text):
    body = parse_module(text).computations['body']
    return call_products(body, body.by_name['c'])


@pytest.mark.parametrize(
    ('text', 'products', 'pairs'),
    [
        (attention('ScaleBiasSoftmax'), 2, T * T),
        (attention('ScaleBiasSoftmaxBackward'), 5, T * T),
        (attention('Softmax', 'PADDING', keys=64), 2, T * 64),
        (attention('Softmax', 'PADDING_CAUSAL'), 2, T * (T + 1) // 2),
        (attention('SoftmaxBackward', 'CAUSAL'), 5, T * (T + 1) // 2),
        # Of a window of 32 the first 31 queries see fewer keys.
        (attention('Softmax', 'PADDING_CAUSAL', 32), 2, 32 * T - 31 * 32 // 2),
        # Keys end before queries do: the later half of the queries sees all of them.
        (attention('Softmax', 'CAUSAL', keys=64), 2, 64 * 65 // 2 + 64 * 64),
    ],
)
def test_attention_of_cudnn(text, products, pairs):
    assert flops(text) == products * 2 * B * N * pairs * H


@pytest.mark.parametrize('target', ['__cublas$gemm', '__cublas$lt$matmul'])
def test_a_product_of_cublas(target):
    text = f"""%body (a: bf16[4,32,16]) -> bf16[4,32,8] {{
  %a = bf16[4,32,16]{{2,1,0}} parameter(0)
  %b = bf16[4,16,8]{{2,1,0}} parameter(1)
  ROOT %c = (bf16[4,32,8]{{2,1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), \
custom_call_target="{target}", backend_config={{"gemm_backend_config":{{"alpha_real":1,\
"dot_dimension_numbers":{{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}}}}
}}
"""
    assert flops(text) == 2 * (4 * 32 * 8) * 16


def test_another_call_has_no_products():
    assert flops(attention().replace('__cudnn$fmha', 'Sharding')) == 0


BRANCHES = """
{packed}
{lengths}
ENTRY %main (p: pred[]) -> bf16[1] {{
  %p = pred[] parameter(0)
  %q = {array} parameter(1)
  ROOT %r = bf16[1] conditional(%p, %q, %q), true_computation=%lengths, false_computation=%packed
}}
"""


@pytest.mark.parametrize(('mask', 'share'), [('PADDING_CAUSAL', (T + 1) / (2 * T)), ('PADDING', 1)])
def test_packed_rows_take_the_branch_with_the_mask_as_a_matrix(mask, share):
    text = BRANCHES.format(
        packed=attention('ScaleBiasSoftmax').replace('%body', '%packed'),
        lengths=attention('Softmax', mask).replace('%body', '%lengths'),
        array=ARRAY,
    )
    whole = 2 * 2 * B * N * T * T * H
    packed = read_text(text, MESH, Memory(0, 0, 0))
    assert (packed.flops, packed.kernels) == (whole, {'__cudnn$fmhaScaleBiasSoftmax': 1})
    unpacked = read_text(text, MESH, Memory(0, 0, 0), packed=False)
    assert unpacked.kernels == {'__cudnn$fmhaSoftmax': 1}
    assert unpacked.flops == whole * share


PROGRAM = """%product (a: f32[64,32]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  ROOT %d = f32[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%scatter (s: f32[64,16]) -> f32[16,16] {
  %s = f32[64,16]{1,0} parameter(0)
  ROOT %rs = f32[16,16]{1,0} reduce-scatter(%s), channel_id=3, replica_groups=[1,4]<=[4], \
dimensions={0}
}

ENTRY %main (x: f32[64,32]) -> f32[16,16] {
  %x = f32[64,32]{1,0} parameter(0)
  %y = f32[8,16]{1,0} parameter(1)
  %start = (f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%y), channel_id=1, \
replica_groups={{0,1,2,3}}, backend_config={"collective_backend_config":{"is_sync":false}}
  %done = f32[32,16]{1,0} all-gather-done(%start)
  %gemm = f32[64,16]{1,0} fusion(%x, %done), kind=kCustom, calls=%product, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %sum = f32[64,16]{1,0} all-reduce-start(%gemm), channel_id=2, replica_groups={{0,1,2,3}}
  %summed = f32[64,16]{1,0} all-reduce-done(%sum)
  %begin = ((f32[64,16]{1,0}), f32[16,16]{1,0}) async-start(%summed), calls=%scatter
  ROOT %end = f32[16,16]{1,0} async-done(%begin)
}
"""


def test_collectives_that_run_beside_others_and_products_of_triton():
    found = read_text(PROGRAM, MESH, Memory(0, 0, 0))
    assert found.flops == 2 * 64 * 16 * 32
    assert found.kernels == {'triton product': 1}
    told = {c.kind: (c.axes, c.count, c.bytes, c.sent) for c in found.collectives}
    size = 4 * 64 * 16
    assert told == {
        'all-gather': (('data',), 1, size // 2, size * 3 // 8),
        'all-reduce': (('data',), 1, size, size * 3 // 2),
        'reduce-scatter': (('data',), 1, size, size * 3 // 4),
    }
    # The product reads and writes; the collectives are no work of the memory.
    assert found.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
