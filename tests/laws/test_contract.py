"""Every kind passes the checks of what it supports, and supports what it must."""

import pytest
from laws import contract
from laws.contract import CHECKS, SITE_CAPABILITY, Case, applies, site

from transformer_jax import spec
from transformer_jax.attention import KINDS

# Each kind with its defaults, so that a new kind is tested as soon as it is in KINDS; then options
# that change the computation.
CASES = [
    *map(Case, KINDS),
    Case('softmax', kv_heads=2),
    Case('softmax(talking="both", gate="head")'),
    Case('softmax(forget=True)', kv_heads=2),
    Case('softmax(mask=window(4), gate="element")', 'rope', 1),
    Case('softmax(mask=window(5) | global_tokens(2))', 't5'),
    Case('softmax(normalizer=sink, softcap=2.0, qk_norm=True)', 'alibi', 2),
    Case('softmax(normalizer=sigmoid)', 'kerple'),
    Case('softmax(normalizer=entmax15)', 'cope'),
    Case('softmax(normalizer=relu2)', 'shaw', 2),
    Case('additive(normalizer=off_by_one)', 'fire', 2),
    Case('differential(mask=window(6))', 'rope', 2),
    Case('additive', kv_heads=1),
    Case('synthesizer(form="random")'),
    Case('synthesizer(mix=True)', 'rope', 2),
    Case('latent(rank=8, rope_dim=4, query_rank=8)', 'rope'),
    Case('latent(mask=window(5))', 'transformer_xl'),
    Case('synthesizer(form="random", max_len=32, mix=True)', 'shaw'),
    Case('synthesizer(mask=bigbird(2))', 't5'),
    Case('linear(feature=favor(features=16), chunk=4)', 'rope', 2),
    Case('linear(feature=taylor, chunk=7)', kv_heads=1),
    Case('linear(decay=fixed, chunk=4)', 'rope'),
    Case('linear(decay=gated, chunk=3, gate="element")', kv_heads=2),
    Case('linformer(length=24, rank=4, share="kv")', kv_heads=2),
    Case('reformer(buckets=4, chunk=4, rounds=2)', 'rope', 2),
    Case('reformer(buckets=6, chunk=3, rounds=3)'),
    Case('sinkhorn(block=4, iterations=5)', 'rope', 2),
]
# What each kind must support at least: declaring less does not pass.
SCORED = {'encoder', 'causal', 'cross', 'padding', 'segments', 'decode', 'bias', 'context'}
REQUIRED = {
    'softmax': SCORED,
    'additive': SCORED,
    'latent': SCORED,
    'differential': SCORED,
    'linear': SCORED - {'bias'},
    'linear(feature=favor)': SCORED - {'bias'},
    'linear(feature=taylor)': SCORED - {'bias'},
    'linear(feature=relu)': SCORED - {'bias'},
    'linear(decay=fixed)': {'causal', 'padding', 'segments', 'decode', 'context'},
    'linear(decay=gated)': {'causal', 'padding', 'segments', 'decode', 'context'},
    'softmax(forget=True)': {'causal', 'padding', 'segments', 'decode', 'context'},
    'linformer': {'encoder', 'cross', 'padding'},
    'synthesizer': SCORED - {'cross'},
    'synthesizer(form="random")': SCORED - {'cross'},
    'reformer': {'encoder', 'padding'},
    'sinkhorn': {'encoder', 'padding'},
}


def capabilities(case):
    return spec.parse(case.attention, KINDS, 'attention').supports()


# The checks of each kind with its defaults that are fast tests: they share one or two compiled
# programs.
FAST = (
    contract.causality_by_gradient,
    contract.causality_by_intervention,
    contract.padding_has_no_influence,
    contract.rows_that_see_nothing_are_zero,
    contract.packed_is_separate,
    contract.cached_is_teacher_forced,
)


def marks(case, check):
    """Return how often a check is made: less often with other options than the defaults."""
    if case.attention in KINDS:
        return () if check in FAST else pytest.mark.slow
    return pytest.mark.slow if check in FAST else pytest.mark.rare


def held_to():
    for case in CASES:
        for name in SITE_CAPABILITY:
            for check in CHECKS:
                if applies(check, name, capabilities(case)):
                    yield pytest.param(
                        case,
                        name,
                        check,
                        id=f'{case}-{name}-{check.__name__}',
                        marks=marks(case, check),
                    )


@pytest.mark.parametrize(('case', 'name', 'check'), list(held_to()))
def test_a_kind_keeps_its_promise(case, name, check):
    check(site(case, name))


def pytest_generate_tests(metafunc):
    """Hold the kinds of other packages that --kind=my_kinds.cosine.Cosine names to the checks."""
    if 'outside' in metafunc.fixturenames:
        cases = [
            pytest.param((case, name, check), id=f'{case}-{name}-{check.__name__}')
            for case in map(Case, metafunc.config.getoption('kind'))
            for name in SITE_CAPABILITY
            for check in CHECKS
            if applies(check, name, capabilities(case))
        ]
        metafunc.parametrize('outside', cases)


def test_a_kind_of_another_package_keeps_its_promise(outside):
    case, name, check = outside
    check(site(case, name))


@pytest.mark.parametrize('attention', REQUIRED)
def test_a_kind_promises_what_the_design_asks_of_it(attention):
    missing = REQUIRED[attention] - capabilities(Case(attention))
    assert not missing


def test_every_kind_of_the_design_is_in_the_table():
    assert {attention.partition('(')[0] for attention in REQUIRED} <= set(KINDS)
