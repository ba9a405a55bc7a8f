"""What a compiled program says of itself, counted by hand in hand-made texts."""

import pytest

from transformer_jax.profiling.collectives import Collective, group_axes
from transformer_jax.profiling.compiled import Memory, Work, read_text

MESH = {'data': 2, 'fsdp': 4, 'tensor': 1}
NONE = Memory(0, 0, 0)


def program(lines, *others):
    """Read a program whose entry has some lines, with other computations before it."""
    body = '\n'.join(f'  {line}' for line in lines)
    text = '\n\n'.join((*others, f'ENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n'))
    return read_text(text, MESH, NONE)


@pytest.mark.parametrize(
    ('groups', 'axes'),
    [
        ('{{0,1,2,3},{4,5,6,7}}', ('fsdp',)),
        ('{{0,4},{1,5},{2,6},{3,7}}', ('data',)),
        ('{{0,1,2,3,4,5,6,7}}', ('data', 'fsdp')),
        ('{{0},{1},{2},{3},{4},{5},{6},{7}}', ()),
        ('{}', ('data', 'fsdp')),
        ('[2,4]<=[8]', ('fsdp',)),
        ('[4,2]<=[2,4]T(1,0)', ('data',)),
        ("mesh['a'=2,'b'=4] {'b'}", ('fsdp',)),
        ("mesh['a'=2,'b'=4,'c'=1] {'a'}", ('data',)),
        ("mesh['a'=8] {'a'}", ('data', 'fsdp')),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ('fsdp',)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ('data',)),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'a'}", ('fsdp',)),
        ('{{0,1},{1,2},{2,3},{3,0}}', ('fsdp',)),  # pairs of source and target
    ],
)
def test_groups_of_devices_are_mesh_axes(groups, axes):
    assert group_axes(groups, MESH) == axes


def test_bytes_of_each_collective_by_hand():
    found = program(
        [
            '%p = f32[256]{0} parameter(0)',
            '%ag = f32[1024]{0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8]',
            '%ar = f32[1024]{0} all-reduce(%ag), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0)',
            '%rs = f32[256]{0} reduce-scatter(%ar), channel_id=3, replica_groups=[2,4]<=[8]',
            '%cp = f32[256]{0} collective-permute(%rs), channel_id=4, '
            'source_target_pairs={{0,1},{1,2},{2,3},{3,0}}',
            'ROOT %alone = f32[256]{0} all-reduce(%cp), channel_id=5, replica_groups=[8,1]<=[8]',
        ]
    )
    assert found.collectives == (
        Collective('all-gather', ('fsdp',), 1, 4096, 3072),  # 3/4 of 4 KiB
        Collective('all-reduce', ('data',), 1, 4096, 4096),  # 2 · 1/2 of 4 KiB
        Collective('collective-permute', ('fsdp',), 1, 1024, 1024),
        Collective('reduce-scatter', ('fsdp',), 1, 4096, 3072),
    )
    assert not found.works  # what they move is no work of the memory


def test_the_beginning_of_a_gather_returns_what_it_was_given_too():
    found = program(
        [
            '%p = f32[256]{0} parameter(0)',
            '%begin = (f32[256]{0}, f32[1024]{0}) all-gather-start(%p), channel_id=1, '
            'replica_groups=[2,4]<=[8]',
            'ROOT %end = f32[1024]{0} all-gather-done(%begin)',
        ]
    )
    assert found.collectives == (Collective('all-gather', ('fsdp',), 1, 4096, 3072),)


SCATTER = """%all-reduce-scatter.2 (input: bf16[512,256]) -> bf16[128,256] {
  %input = bf16[512,256]{1,0} parameter(0)
  %sum = bf16[512,256]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}
  %zero = u32[] constant(0)
  ROOT %cut = bf16[128,256]{1,0} dynamic-slice(%sum, %zero, %zero)
}"""
PIECE = """%piece.{0} (a: f32[256]) -> f32[1024] {{
  %a = f32[256]{{0}} parameter(0)
  ROOT %part.{0} = f32[1024]{{0}} all-gather(%a), channel_id=9, replica_groups=[2,4]<=[8]
}}"""


def test_a_tpu_writes_a_reduce_scatter_as_a_fusion():
    found = program(
        [
            '%p = bf16[512,256]{1,0} parameter(0)',
            'ROOT %f = bf16[128,256]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2',
        ],
        SCATTER,
    )
    size = 2 * 512 * 256
    assert found.collectives == (Collective('reduce-scatter', ('fsdp',), 1, size, size * 3 // 4),)
    assert not found.works


def test_pieces_of_one_collective_count_once():
    found = program(
        [
            '%p = f32[256]{0} parameter(0)',
            '%first = f32[1024]{0} fusion(%p), kind=kCustom, calls=%piece.1',
            'ROOT %second = f32[1024]{0} fusion(%p), kind=kCustom, calls=%piece.2',
        ],
        PIECE.format(1),
        PIECE.format(2),
    )
    assert [(c.count, c.bytes) for c in found.collectives] == [(1, 4096)]


def test_collectives_of_one_channel_are_apart_by_kind_and_size():
    channel = 'channel_id=1, replica_groups=[2,4]<=[8]'
    found = program(
        [
            '%p = f32[256]{0} parameter(0)',
            f'%gathered = f32[1024]{{0}} all-gather(%p), {channel}',
            f'%sum = f32[256]{{0}} all-reduce(%p), {channel}',
            f'ROOT %whole = f32[1024]{{0}} all-reduce(%gathered), {channel}',
        ]
    )
    assert [(c.kind, c.count, c.bytes) for c in found.collectives] == [
        ('all-gather', 1, 4096),
        ('all-reduce', 2, 4096 + 1024),
    ]


LOOP = (
    """%condition (c: (s32[], f32[8,8])) -> pred[] {
  %c = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}""",
    """%body (b: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %b = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%b), index=1
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %s = f32[8,8]{1,0} all-reduce(%y), channel_id=1, replica_groups=[2,4]<=[8]
  %k = f32[8,8]{1,0} custom-call(%s), custom_call_target="tpu_custom_call"
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%j, %k)
}""",
)


@pytest.mark.parametrize(('step', 'runs'), [(1, 6), (2, 3), (4, 2)])
def test_a_loop_may_count_by_more_than_one(step, runs):
    condition, body = LOOP
    body = body.replace('  ROOT %t', f'  %step = s32[] constant({step})\n  ROOT %t')
    body = body.replace('tuple(%j, %k)', 'tuple(%next, %k)')
    body = body.replace('  ROOT %t', '  %next = s32[] add(%j, %step)\n  ROOT %t')
    found = program(
        [
            '%p = (s32[], f32[8,8]{1,0}) parameter(0)',
            'ROOT %w = (s32[], f32[8,8]{1,0}) while(%p), condition=%condition, body=%body',
        ],
        condition,
        body,
    )
    assert found.flops == runs * 2 * 8**3


def test_loops_count_as_often_as_they_run():
    found = program(
        [
            '%p = (s32[], f32[8,8]{1,0}) parameter(0)',
            'ROOT %w = (s32[], f32[8,8]{1,0}) while(%p), condition=%condition, body=%body',
        ],
        *LOOP,
    )
    assert found.flops == 6 * 2 * 8**3
    assert found.collectives == (Collective('all-reduce', ('fsdp',), 6, 6 * 256, 6 * 384),)
    assert found.kernels == {'mosaic k': 6}


def test_of_a_conditional_the_larger_branch_counts():
    branches = [
        f"""%branch.{n} (q: f32[{n},{n}]) -> f32[{n},{n}] {{
  %q = f32[{n},{n}]{{1,0}} parameter(0)
  ROOT %r = f32[{n},{n}]{{1,0}} dot(%q, %q), lhs_contracting_dims={{1}}
}}"""
        for n in (4, 16)
    ]
    found = program(
        [
            '%p = f32[4,4]{1,0} parameter(0)',
            '%q = f32[16,16]{1,0} parameter(1)',
            'ROOT %c = f32[4,4]{1,0} conditional(%p, %p, %q), '
            'branch_computations={%branch.4, %branch.16}',
        ],
        *branches,
    )
    assert found.flops == 2 * 16**3


FUSED = """%fused (a: f32[100,8], b: f32[8], i: s32[]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %i)
  %flat = f32[8]{0} reshape(%row)
  ROOT %sum = f32[8]{0} add(%flat, %b)
}"""
UPDATED = """%updated (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}"""


def test_bytes_that_fusions_move_by_hand():
    given = [
        '%a = f32[100,8]{1,0} parameter(0)',
        '%b = f32[8]{0} parameter(1)',
        '%u = f32[1,8]{1,0} parameter(2)',
        '%i = s32[] parameter(3)',
    ]
    # A row of 32 bytes, b, the index and the result.
    sliced = program([*given, 'ROOT %f = f32[8]{0} fusion(%a, %b, %i), calls=%fused'], FUSED)
    assert sliced.works == (Work(0, 32 + 32 + 4 + 32),)
    # An update in place: the row is read where it is written, with u and the index.
    line = 'ROOT %f = f32[100,8]{1,0} fusion(%a, %u, %i), calls=%updated'
    assert program([*given, line], UPDATED).works == (Work(0, 32 + 32 + 4 + 32),)
    # Both operands and the result; none for an array in the core's own memory.
    line = 'ROOT %s = f32[8]{0:S(1)} add(%b, %b)'
    assert program([*given, line]).works == (Work(0, 64),)


def test_copies_into_the_core_read_what_they_copy():
    given = '%a = f32[100,8]{1,0} parameter(0)'
    begun = '%s = (f32[100,8]{1,0}, f32[10,8]{1,0:S(1)}, s32[]) slice-start(%a), slice={[0:10]}'
    assert program([given, begun, 'ROOT %d = f32[10,8]{1,0:S(1)} slice-done(%s)']).works == (
        Work(0, 320),
    )
    begun = '%s = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]) copy-start(%a)'
    assert program([given, begun, 'ROOT %d = f32[100,8]{1,0:S(1)} copy-done(%s)']).works == (
        Work(0, 3200),
    )
