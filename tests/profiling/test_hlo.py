"""The text of compiled programs, read from hand-made ones."""

import pytest

from transformer_jax.profiling.hlo import Array, parse_module, products, trip_count

LOOP = """HloModule jit_f, is_scheduled=true

%condition.1 (arg: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %arg = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body.1 (arg.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %x.1 = f32[4,8]{1,0} get-tuple-element(%arg.1), index=1
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i.1, %x.1)
}, execution_thread="sparsecore"

ENTRY %main (x: f32[4,8], w: bf16[8,16]) -> f32[4,16] {
  %x = f32[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %w = bf16[8,16]{1,0} parameter(1)
  %start = (s32[], /*index=1*/f32[4,8]{1,0}) tuple(%x, %x)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition.1, body=%body.1
  %kernel = f32[4,8]{1,0} custom-call(%x), custom_call_target="k", frontend_attributes={meta={
"note":"{ a brace (and one)"
}}, metadata={op_name="f"}
  ROOT %dot.3 = f32[4,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


@pytest.fixture
def module():
    return parse_module(LOOP)


def test_computations_and_their_instructions(module):
    assert module.entry == 'main'
    assert list(module.computations) == ['condition.1', 'body.1', 'main']
    main = module.computations['main']
    names = ['x', 'w', 'start', 'loop', 'kernel', 'dot.3']
    assert [i.name for i in main.instructions] == names
    assert main.root == 'dot.3'
    assert [p.name for p in main.parameters] == ['x', 'w']
    assert [user.name for user in main.users['x']] == ['start', 'kernel', 'dot.3']


def test_arrays_have_sizes_and_a_place(module):
    main = module.computations['main'].by_name
    assert main['x'].arrays == (Array('f32', (4, 8), in_memory=False),)  # S(1): in the core
    assert main['w'].bytes == 2 * 8 * 16
    assert main['start'].arrays == (Array('s32', ()), Array('f32', (4, 8)))
    assert Array('pred', (3,)).bytes == 3
    assert Array('f8e4m3fn', (3,)).bytes == 3


def test_attributes_may_have_line_feeds_and_braces(module):
    kernel = module.computations['main'].by_name['kernel']
    assert kernel.operands == ('x',)
    assert 'a brace (and one)' in kernel.attributes
    assert module.computations['main'].by_name['loop'].called('body') == ('body.1',)


def test_a_loop_of_a_scan_runs_up_to_the_constant_of_its_condition(module):
    assert trip_count(module, module.computations['main'].by_name['loop']) == 12


def test_a_loop_says_its_count_or_counts_once():
    known = LOOP.replace(
        'body=%body.1\n', 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}\n'
    )
    unknown = LOOP.replace('direction=LT', 'direction=EQ')
    for text, count in ((known, 5), (unknown, 1)):
        module = parse_module(text)
        assert trip_count(module, module.computations['main'].by_name['loop']) == count


def products_of(line, left, right):
    text = f"""ENTRY %main (a: f32[1]) -> f32[1] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {line}
}}
"""
    main = parse_module(text).computations['main']
    return products(main, main.by_name['c'])


def test_flops_of_products_by_hand():
    dot = 'f32[2,4,16]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}'
    assert products_of(dot, 'f32[2,4,8]', 'f32[2,8,16]') == 2 * (2 * 4 * 16) * 8
    # [4, 8] · [8, 16] as TPUs write it.
    plain = 'f32[4,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf'
    assert products_of(plain, 'f32[4,8]', 'f32[8,16]') == 2 * 4 * 16 * 8
    # q_BTD · w_DNH → [2, 256, 4, 64]: heads are the positions of a kernel of width 4, and each
    # output position meets one of them; the others meet padding.
    heads = (
        'bf16[2,256,4,64]{1,3,2,0} convolution(%a, %b), '
        'window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f'
    )
    expected = 2 * (2 * 256) * 256 * (4 * 64)
    assert products_of(heads, 'bf16[2,256,256,1]', 'bf16[4,64,256,1]') == expected
    # The other way round, o_BTNH · w_NHD sums over the heads.
    summed = (
        'bf16[2,256,256,1]{2,1,3,0} convolution(%a, %b), window={size=1x4}, '
        'dim_labels=0b1f_1io0->0bf1'
    )
    assert products_of(summed, 'bf16[2,256,4,64]', 'bf16[4,64,256,1]') == expected


def test_strides_and_holes_of_a_convolution():
    # Length 5, kernel 3, stride 2, no padding: 2 outputs, 3 inputs each.
    strided = 'f32[1,2,1] convolution(%a, %b), window={size=3 stride=2}, dim_labels=b0f_0io->b0f'
    assert products_of(strided, 'f32[1,5,1]', 'f32[3,1,1]') == 2 * 2 * 3
    # The input 0 _ 1 _ 2 has a hole after each number: outputs meet 2, 1 and 2 inputs.
    holes = 'f32[1,3,1] convolution(%a, %b), window={size=3 lhs_dilate=2}, dim_labels=b0f_0io->b0f'
    assert products_of(holes, 'f32[1,3,1]', 'f32[3,1,1]') == 2 * 5
