"""Variants of equal size: solved sizes against formulas by hand, and against all other sizes."""

import dataclasses
import functools

import jax
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.ablation.match_sizes import MEASURES, closest, match_sizes, through
from transformer_jax.config import resolve
from transformer_jax.errors import ConfigError
from transformer_jax.profiling import flops as costs
from transformer_jax.schema import (
    DataConfig,
    DecodeConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)

TINY = {'encoder_layers': 1, 'decoder_layers': 1, 'd_model': 16, 'd_ff': 96, 'num_heads': 2}
V, D = 64, 16


def experiment(batching='buckets(lengths=(8, 12, 16, 24))', task='number_words', **model):
    return ExperimentConfig(
        model=ModelConfig(**TINY | model),
        train=TrainConfig(batch_tokens=128),
        data=DataConfig(task=task, vocab_size=V, batching=batching),
        decode=DecodeConfig(max_extra_tokens=8),
    )


def with_size(config, n):
    key = 'd_model' if config.model.kind == 'rnn_seq2seq' else 'd_ff'
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **{key: n}))


def arrays(config):
    """Count the numbers of an initialized model: (tables of tokens and positions, the rest)."""
    model = build_model(config.model, V)
    params = jax.device_get(
        model.init(jax.random.PRNGKey(0), dummy_batch(kind=config.model.kind))['params']
    )
    sizes = {
        jax.tree_util.keystr(path): box.value.size
        for path, box in jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda x: hasattr(x, 'value')
        )
    }
    tables = sum(
        n
        for path, n in sizes.items()
        if 'embedding' in path or 'output' in path or 'positions' in path
    )
    return tables, sum(sizes.values()) - tables


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'position': 'learned(max_len=32)', 'tie_embeddings': 'none'},
        {'kind': 'decoder_only'},
        {'kind': 'rnn_seq2seq', 'tie_embeddings': 'none'},
        {'ffn': 'moe(experts=3)'},
    ],
)
def test_parameters_are_all_but_tables_of_tokens_and_positions(changes):
    config = experiment(**changes)
    tables, rest = arrays(config)
    assert costs.non_embedding_params(resolve(config)) == rest
    assert tables >= V * D


def test_what_attention_learns_for_positions_counts():
    plain = costs.non_embedding_params(resolve(experiment()))
    N, length, rank = 2, 32, 4
    linformer = experiment(encoder_attention=f'linformer(length={length}, rank={rank})')
    assert costs.non_embedding_params(resolve(linformer)) == plain + 2 * N * length * rank
    t5 = experiment(position='t5(buckets=8)')
    assert costs.non_embedding_params(resolve(t5)) == plain + 2 * 8 * N


def test_flops_per_token_are_those_of_the_middle_row():
    attention, ffn = 4 * D * D, 2 * D * 96
    for batching, T in (('buckets(lengths=(8, 12, 16, 24))', 12), ('packed(length=64)', 64)):
        products = 3 * (attention + 2 * T * D) + 2 * ffn + D * V
        assert costs.flops_per_token(resolve(experiment(batching))) == 2 * products


def test_a_window_saves_flops_and_a_kernel_elsewhere_changes_none():
    def flops(**changes):
        return costs.flops_per_token(
            resolve(experiment('packed(length=256)', kind='decoder_only', **changes))
        )

    window = flops(attention='softmax(mask=window(16))')
    assert window < flops() == flops(engine='chunked') == flops(engine='cudnn', dtype='bfloat16')
    assert window == flops(attention='softmax(mask=window(16))', engine='blocked')


VARIANTS = {
    'attention of fewer sizes': {'num_kv_heads': 1, 'head_dim': 4},
    'gated': {'ffn': 'swiglu'},
    'experts': {'ffn': 'moe(experts=3, k=1)'},
    'two layers': {'decoder_layers': 2},
    'recurrent': {'kind': 'rnn_seq2seq'},
    'recurrent and fed': {
        'kind': 'rnn_seq2seq',
        'rnn': "gru(attention='multiplicative', input_feeding=True)",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'names'), [('params', list(VARIANTS)), ('flops', ['gated', 'experts', 'recurrent'])]
)
def test_no_other_size_is_nearer(kind, names):
    configs = {'base': experiment()} | {name: experiment(**VARIANTS[name]) for name in names}
    matched = match_sizes(configs, 'base', kind)
    measure = functools.cache(lambda config: MEASURES[kind][1](resolve(config)))
    assert list(matched) == list(configs)
    target = measure(configs['base'])
    assert matched['base'].config == configs['base']
    assert (matched['base'].chosen, matched['base'].residual) == ({}, 0)
    for name, found in matched.items():
        assert (found.value, found.target) == (measure(found.config), target)
        assert found.residual == pytest.approx(found.value / target - 1)
        if name == 'base':
            continue
        [(key, n)] = found.chosen.items()
        assert with_size(configs[name], n) == found.config, 'nothing else changes'
        assert key == ('model.d_model' if 'recurrent' in name else 'model.d_ff')
        distance = abs(found.value - target)
        near = [n - 1, n + 1] if n % 8 or distance > 0.01 * target else [n - 8, n + 8]
        assert all(
            distance <= abs(measure(with_size(configs[name], other)) - target)
            for other in near
            if other > 0
        )
        if n % 8:  # No multiple of 8 was within 1%.
            below = n // 8 * 8
            assert all(
                abs(measure(with_size(configs[name], even)) - target) >= 0.01 * target
                for even in (below, below + 8)
                if even
            )


def test_each_variant_is_brought_to_the_size_of_its_own_reference():
    configs = {
        'small': experiment(),
        'other': experiment(d_ff=300),
        'big': experiment(d_ff=192),
        'big other': experiment(d_ff=300),
    }
    references = {'small': 'small', 'other': 'small', 'big': 'big', 'big other': 'big'}
    matched = match_sizes(configs, references, 'params')
    assert [found.chosen.get('model.d_ff') for found in matched.values()] == [None, 96, None, 192]
    assert [found.target for found in matched.values()] == [
        costs.non_embedding_params(resolve(configs[home])) for home in references.values()
    ]


def test_few_models_are_traced(monkeypatch):
    traced = []
    monkeypatch.setitem(
        MEASURES,
        'params',
        (
            '',
            lambda components: (
                traced.append(components.architecture.d_ff) or components.architecture.d_ff * 10
            ),
        ),
    )
    match_sizes({'base': experiment(), 'wide': experiment(d_ff=4000)}, 'base', 'params')
    assert traced == [96, 4000, 3, 48, 96]


def test_what_is_equal_stays_as_it_is():
    configs = {
        'base': experiment(d_ff=101),
        'other norm': experiment(d_ff=101, norm_placement='pre', norm='rms'),
        'same': experiment(d_ff=101, dropout=0.3),
        'heads': experiment(d_ff=101, num_heads=4),
    }
    matched = match_sizes(configs, 'base', 'params')
    for name in ('same', 'heads'):
        assert matched[name].config == configs[name]
        assert matched[name].chosen == {'model.d_ff': 101}
    assert matched['other norm'].config.model.d_ff != 101


def test_none_matches_nothing():
    configs = {'base': experiment(), 'wide': experiment(d_ff=500)}
    matched = match_sizes(configs, 'base', 'none')
    assert {name: found.config for name, found in matched.items()} == configs
    assert all((found.chosen, found.residual) == ({}, 0) for found in matched.values())


def test_all_that_cannot_be_small_enough_are_listed_with_their_surplus():
    configs = {
        'base': experiment(d_ff=8),
        'deep': experiment(encoder_layers=5),
        'fine': experiment(num_kv_heads=1),
        'wide heads': experiment(head_dim=64),
    }
    with pytest.raises(ConfigError) as caught:
        match_sizes(configs, 'base', 'params')
    text = str(caught.value)
    target = costs.non_embedding_params(resolve(configs['base']))
    for name in ('deep', 'wide heads'):
        least = costs.non_embedding_params(resolve(with_size(configs[name], 1)))
        already = f'{name}: {least:,} non-embedding parameters with model.d_ff=1 already, '
        assert f'{already}{least - target:,} (' in text
    assert 'fine:' not in text


def test_the_search_finds_the_nearest_from_anywhere():
    def staircase(n):
        return 100 + 7 * (2 * n // 3)

    for target in (100, 104, 500, 5000):
        best = min(range(1, 2000), key=lambda n: abs(staircase(n) - target))
        for start in (1, 40, 1500):
            found = closest(staircase, target, start)
            distance = abs(staircase(found) - target)
            nearest = abs(staircase(best) - target)
            assert distance == nearest or (found % 8 == 0 and distance < 0.01 * target)


def test_a_polynomial_through_its_points_is_exact_far_away():
    def law(n):
        return 3 * n * n + 5 * n + 7

    assert through({n: law(n) for n in (3, 24, 48)})(123_456) == law(123_456)
