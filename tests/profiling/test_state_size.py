"""Sizes of decoding states: against formulas of papers, and against the arrays that decoding holds.

Letters: L tokens, N query heads, K key-value heads, H their size, V the size of a value.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model

from transformer_jax import config as config_lib
from transformer_jax.ablation import Axis, Experiment, Metric, state_bytes
from transformer_jax.attention import KINDS
from transformer_jax.batch import Tokens
from transformer_jax.config import resolve, resolve_architecture
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.errors import ConfigError
from transformer_jax.models import abstract_params
from transformer_jax.profiling.state_size import config_state, state_size
from transformer_jax.schema import DataConfig, DecodeConfig, ExperimentConfig, ModelConfig

N, H, V = 4, 8, 8
SMALL = ModelConfig(
    kind='decoder_only',
    encoder_layers=1,
    decoder_layers=1,
    d_model=N * H,
    d_ff=16,
    num_heads=N,
    position='none',
)


def small(**keys) -> ModelConfig:
    return dataclasses.replace(SMALL, **keys)


def size_of(length, *rest, **keys):
    return state_size(resolve_architecture(small(**keys), 16), length, *rest)


def kv(L, K, H=H, V=V):
    """Keys and values of softmax attention in float32 (Shazeer 2019; Ainslie et al. 2023)."""
    return 4 * L * K * (H + V)


def sums(K, features, value=V + 1):
    """Linear attention's S, a matrix for each head, with z as a last column; always float32."""
    return 4 * K * features * value


# attention, further keys -> bytes of a layer at L tokens
FORMULAS = {
    'multi-head': ('softmax', {}, lambda L: kv(L, 4)),
    'two key-value heads': ('softmax', {'num_kv_heads': 2}, lambda L: kv(L, 2)),
    'multi-query': ('softmax', {'num_kv_heads': 1}, lambda L: kv(L, 1)),
    'multi-query, half': (
        'softmax',
        {'num_kv_heads': 1, 'dtype': 'bfloat16'},
        lambda L: kv(L, 1) // 2,
    ),
    'wide values': ('softmax', {'value_dim': 20}, lambda L: kv(L, 4, V=20)),
    'window': ('softmax(mask=window(16))', {}, lambda L: kv(min(L, 16), 4)),
    'window, one head': (
        'softmax(mask=window(16))',
        {'num_kv_heads': 1},
        lambda L: kv(min(L, 16), 1),
    ),
    'window and global': ('softmax(mask=window(16) | global_tokens(2))', {}, lambda L: kv(L, 4)),
    'prefix': ('softmax(mask=prefix(8))', {}, lambda L: kv(L, 4)),
    # Log decays of each head, summed, and their sum so far, in float32.
    'forget gate': (
        'softmax(forget=True)',
        {'num_kv_heads': 2},
        lambda L: kv(L, 2) + 4 * N * (L + 1),
    ),
    'additive': ('additive', {}, lambda L: kv(L, 4)),
    # Two keys of half the size (Ye et al. 2024, equation 1).
    'differential': ('differential', {}, lambda L: kv(L, 4)),
    # (d_c + d_h^R) l of DeepSeek-V2, Table 1; there d_c = 4 d_h and d_h^R = d_h / 2.
    'latent': ('latent', {}, lambda L: 4 * L * (4 * H + H // 2)),
    'latent, small': ('latent(rank=6, rope_dim=2)', {}, lambda L: 4 * L * (6 + 2)),
    'latent, window': ('latent(mask=window(5))', {}, lambda L: 4 * min(L, 5) * 4.5 * H),
    'synthesizer': ('synthesizer', {}, lambda L: kv(L, 4, H=0)),
    'synthesizer, mixed': ('synthesizer(mix=True)', {'num_kv_heads': 2}, lambda L: kv(L, 2)),
    'linear': ('linear', {}, lambda L: sums(4, H)),
    'linear, half': ('linear', {'dtype': 'bfloat16'}, lambda L: sums(4, H)),
    'linear, grouped': ('linear', {'num_kv_heads': 2}, lambda L: sums(2, H)),
    # 1 + d + d² features (Arora et al. 2024, "Based", section 4.1).
    'taylor': ('linear(feature=taylor)', {}, lambda L: sums(4, 1 + H + H**2)),
    'favor': ('linear(feature=favor(features=24))', {}, lambda L: sums(4, 24)),
    # Without a division there is no z (Sun et al. 2023, equation 6; Yang et al. 2024, equation 3).
    'retention': ('linear(decay=fixed)', {}, lambda L: sums(4, H, V)),
    'gated': ('linear(decay=gated, feature=none)', {}, lambda L: sums(4, H, V)),
}


@pytest.mark.parametrize('name', FORMULAS)
def test_a_state_is_that_of_the_formula(name):
    attention, keys, formula = FORMULAS[name]
    for length in (7, 40):
        size = size_of(length, attention=attention, **keys)
        assert (size.bytes, size.source_bytes) == (formula(length), 0), length


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_has_a_state_or_does_not_decode(kind):
    """A state never shrinks with the length and never grows faster than it."""
    if 'decode' not in KINDS[kind]().supports():
        assert size_of(8, attention=kind) is None
        return
    one, two, four = (size_of(length, attention=kind).bytes for length in (32, 64, 128))
    assert 0 < one <= two <= 2 * one
    assert two <= four <= 2 * two
    half = size_of(64, attention=kind, dtype='bfloat16').bytes
    assert two / 2 <= half <= two


class Recorder:
    """A model that keeps the state which each decoding step is given, by shape and dtype."""

    def __init__(self, model):
        self.model = model

    def apply(self, variables, *args, method):
        if method == 'step':
            self.state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args[1:])
        return self.model.apply(variables, *args, method=method)


def decoded_state(model, method: str, rows: int, read: int, extra: int):
    """Trace the decoding program; return the arrays that its loop passes from step to step."""
    settings = DecodeConfig(method=method, beam=3, max_extra_tokens=extra)
    recorder = Recorder(model)
    decoder = make_decoder(recorder, settings, model.architecture.vocab_size)
    ones_BS = jnp.ones((rows, read), jnp.int32)
    rows_B = jnp.arange(rows)
    jax.eval_shape(
        decoder, abstract_params(model), ones_BS, ones_BS, ones_BS, jax.random.PRNGKey(0), rows_B
    )
    return recorder.state


def assert_same_as_decoding(method, rows=2, read=5, extra=30, **keys):
    """Compare a size with the state in the loop of greedy search or of beam search."""
    model, hypotheses = build_model(small(**keys), 16), 3 if method == 'beam' else 1
    prompt = read if model.architecture.kind == 'decoder_only' else 0
    size = state_size(model.architecture, prompt + read + extra, read, hypotheses)
    numbers, places, shared = 0, 0, 0
    for leaf in jax.tree.leaves(decoded_state(model, method, rows, read, extra)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            numbers += leaf.size * leaf.dtype.itemsize
        else:
            places += leaf.size * leaf.dtype.itemsize
            shared += leaf.dtype.itemsize if not leaf.shape else 0  # one index for all rows
    assert numbers == rows * size.bytes
    assert places == rows * (size.index_bytes - shared) + shared


DECODING = (
    *(kind for kind in KINDS if 'decode' in KINDS[kind]().supports()),
    'softmax(mask=window(9))',
    'softmax(forget=True)',
)


@pytest.mark.parametrize('kind', DECODING)
def test_a_state_is_what_the_decoding_program_holds(kind):
    assert_same_as_decoding('beam', attention=kind, num_kv_heads=2)


@pytest.mark.parametrize('kind', ['softmax', 'linear'])
def test_and_in_greedy_search(kind):
    assert_same_as_decoding('greedy', attention=kind)


@pytest.mark.parametrize(
    'keys',
    [
        {'kind': 'encoder_decoder', 'attention': 'latent', 'dtype': 'bfloat16'},
        {'kind': 'encoder_decoder', 'decoder_attention': 'linear, softmax', 'decoder_layers': 2},
        {'kind': 'encoder_decoder', 'encoder_attention': 'linformer', 'scan_layers': True},
        {'kind': 'rnn_seq2seq', 'rnn': 'lstm(input_feeding=True)', 'decoder_layers': 2},
    ],
    ids=str,
)
def test_that_of_other_models_too(keys):
    assert_same_as_decoding('beam', **keys)


@pytest.mark.slow
def test_the_state_of_arrays_that_were_computed():
    keys = {'attention': 'softmax(mask=window(4)), linear, latent', 'decoder_layers': 3}
    model = build_model(small(**keys), 16)
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract_params(model))
    tokens_1S = jnp.ones((1, 5), jnp.int32)

    @jax.jit
    def decode(params):
        source = jnp.arange(5, dtype=jnp.int32)[None], tokens_1S
        cache, memory = model.apply(
            {'params': params}, tokens_1S, Tokens(*source), 6, method='start'
        )
        return model.apply({'params': params}, tokens_1S[:, 0], cache, memory, method='step')[1]

    layers = decode(params).layers
    found = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(layer) if leaf.dtype == jnp.float32)
        for layer in layers
    ]
    size = size_of(11, **keys)
    assert [layer.past_bytes for layer in size.layers] == found == [kv(4, 4), sums(4, H), 1584]


def test_layers_of_a_pattern():
    size = size_of(40, attention='2*softmax(mask=window(8)), softmax', decoder_layers=4)
    names = [layer.name for layer in size.layers]
    assert names == ['decoder_0', 'decoder_1', 'decoder_2', 'decoder_3']
    assert [layer.past_bytes for layer in size.layers] == [kv(8, 4), kv(8, 4), kv(40, 4), kv(8, 4)]
    assert size.bytes == size.past_bytes == 3 * kv(8, 4) + kv(40, 4)
    assert size.layers[2].attention == 'softmax'
    # Two int32 and a boolean for each token in a cache that grows, and its index; two int32 in a
    # ring; position and first token of the sequence.
    assert size.index_bytes == 9 * 40 + 4 + 3 * 8 * 8 + 8


def test_an_encoder_decoder_keeps_the_source_too():
    keys = {'kind': 'encoder_decoder', 'num_kv_heads': 2, 'decoder_layers': 2}
    size = size_of(30, 12, **keys)
    assert (size.length, size.source_length) == (30, 12)
    assert [(x.past_bytes, x.source_bytes) for x in size.layers] == 2 * [(kv(30, 2), kv(12, 2))]
    assert size.bytes == 2 * (kv(30, 2) + kv(12, 2))
    alike = size_of(30, **keys)
    assert alike.source_bytes == alike.past_bytes == 2 * kv(30, 2)
    linear = size_of(30, 12, decoder_attention='linear', cross_attention='latent', **keys)
    assert linear.layers[0].past_bytes == sums(2, H)
    assert linear.layers[0].source_bytes == 4 * 12 * 4.5 * H


@pytest.mark.parametrize(
    ('rnn', 'states', 'last', 'memory'),
    [
        ('lstm', 2, 0, 3),  # h and c; outputs of both directions, and their keys
        ('gru', 1, 0, 3),
        ('gru(bidirectional=False)', 1, 0, 2),
        ('lstm(input_feeding=True)', 2, 1, 3),
        ('lstm(attention=none)', 2, None, None),  # Sutskever et al.: nothing but the state
    ],
)
def test_a_recurrent_model_keeps_its_state_and_what_it_attends_to(rnn, states, last, memory):
    D, keys = 4 * 32, {'kind': 'rnn_seq2seq', 'rnn': rnn, 'decoder_layers': 2}
    short, long = size_of(10, **keys), size_of(20, **keys)
    expected = [('decoder_0', states * D, 0), ('decoder_1', states * D, 0)]
    for size, length in ((short, 10), (long, 20)):
        attention = [] if last is None else [('attention', last * D, memory * D * length)]
        found = [(x.name, x.past_bytes, x.source_bytes) for x in size.layers]
        assert found == expected + attention
    assert short.past_bytes == long.past_bytes


def experiment(**keys) -> ExperimentConfig:
    return ExperimentConfig(
        model=small(**{'kind': 'encoder_decoder'} | keys),
        data=DataConfig(vocab_size=64, batching='buckets(lengths=(8, 24))'),
    )


def test_the_length_is_that_of_the_longest_row_unless_given():
    config = experiment()
    assert state_bytes(config) == 2 * kv(24, 4)
    assert config_state(resolve(config)).length == 24
    assert state_bytes(config, 10) == 2 * kv(10, 4)
    assert state_bytes(config, 10, {'model.num_kv_heads': 1}) == 2 * kv(10, 1)
    assert state_bytes(experiment(dtype='bfloat16'), 10) == kv(10, 4)


def test_an_experiment_has_states_on_its_axis():
    base = config_lib.default_config()
    base.update_from_flattened_dict(
        {f'model.{key}': value for key, value in dataclasses.asdict(SMALL).items()}
        | {'model.kind': 'encoder_decoder'}
    )
    kinds = {'softmax': {}, 'window': {'model.attention': 'softmax(mask=window(8))'}}
    points = {name: ('all', state_bytes(base, 50, keys)) for name, keys in kinds.items()}
    made = Experiment('a claim', base, kinds, (Metric('loss'),), axis=Axis('bytes', points))
    assert made.axis.points['softmax'] == ('all', 2 * kv(50, 4))
    # The memory of cross-attention has no window: every query sees its whole source.
    assert made.axis.points['window'] == ('all', kv(8, 4) + kv(50, 4))


def test_what_has_no_state_says_so():
    base = experiment()
    classifier = dataclasses.replace(
        base,
        model=small(kind='classifier', position='sinusoidal'),
        data=dataclasses.replace(
            base.data,
            task='listops(min_length=8, max_length=24)',
            vocab_size=19,
            batching='buckets(lengths=(32,))',
        ),
    )
    assert config_state(resolve(classifier)) is None
    with pytest.raises(ConfigError, match=r"no decoding state: .*'classifier' predicts a class"):
        state_bytes(classifier)


def test_lengths_that_no_state_has_are_refused():
    with pytest.raises(ConfigError, match=r'length=0: .* 1 token or more'):
        state_bytes(experiment(), 0)
    learned = experiment(position='learned(max_len=80)')
    assert state_bytes(learned, 80)
    with pytest.raises(ConfigError, match=r'length=81 is beyond model\.position .* reach to 80'):
        state_bytes(learned, 81)
