"""What cannot be cut over parallel.mesh.context is refused by name before anything compiles."""

import pytest
from helpers.support import experiment, flags

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.schema import MeshConfig

CONTEXT = {'parallel__mesh__context': 4}
REFUSED = {
    'a kind': (
        {'model__encoder_attention': 'reformer'},
        r"model.encoder_attention='reformer' \(encoder layers\) cannot be cut over "
        r'parallel.mesh.context=4; kinds that can: additive, differential, latent, linear, '
        r'softmax, synthesizer$',
    ),
    'an engine': (
        {'model__engine': 'chunked'},
        r"model.attention='softmax' cannot work with model.engine='chunked' \(encoder layers\): it "
        r'cannot cut rows over parallel.mesh.context=4 devices; engines that can: auto, blocked, '
        r'ring, allgather$',
    ),
    'a normalizer in the ring': (
        {'model__engine': 'ring', 'model__attention': 'softmax(normalizer=sparsemax)'},
        r'normalizer=sparsemax needs all keys of a row at once: engines that can: dense, blocked '
        r'\(of windows\), allgather$',
    ),
    'a length': (
        {'data__batching': 'buckets(lengths=(16, 36))'},
        r'has rows of 36 tokens, which parallel.mesh.context=4 cannot cut into 8 pieces \(two for '
        r'each device\); lengths that fit: 32 or 40$',
    ),
    'a short length': (
        {'data__batching': 'packed(length=6)'},
        r'has rows of 6 tokens, .* lengths that fit: 8$',
    ),
    'a recurrent model': (
        {'model__kind': 'rnn_seq2seq'},
        r"model.kind='rnn_seq2seq' reads a row token by token, which parallel.mesh.context=4 "
        'cannot cut: set parallel.mesh.context=1',
    ),
    'a token before the text': (
        {
            'model__kind': 'classifier',
            'model__pooling': 'first',
            'data__task': 'listops(min_length=10, max_length=20)',
            'data__vocab_size': 19,
        },
        "model.pooling='first' puts a token before each row, and parallel.mesh.context=4 cannot "
        "cut that: set model.pooling='mean'",
    ),
    'pmap': (
        {'parallel__mode': 'pmap'},
        "parallel.mode='pmap' is data parallel only: .* and parallel.mesh.context=1",
    ),
    'the rest of the devices': (
        {'parallel__mesh__context': -1},
        r'parallel.mesh.context=-1',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_cut_is_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        experiment(**CONTEXT | changes)


def test_the_command_line_says_it_in_one_line(call):
    code, _, errors = call('train', '--workdir=never', *flags(model__engine='dense', **CONTEXT))
    assert code == 2
    assert errors.count('\n') == 1
    assert 'parallel.mesh.context=4' in errors


def test_what_can_be_cut_is_not_refused():
    for changes in (
        {'data__batching': 'buckets(lengths=(16, 32))'},
        {'data__batching': 'packed(length=24)'},  # its half, 12, is a length of decoding alone
        {'model__attention': 'linear'},
        {'model__attention': 'softmax(normalizer=sparsemax)', 'model__engine': 'allgather'},
        {'model__encoder_attention': 'softmax(mask=window(4))'},
    ):
        experiment(**CONTEXT | changes)


def test_devices_must_fill_the_mesh():
    assert mesh_sizes(MeshConfig(context=4, tensor=2), 16) == {
        'data': 2,
        'fsdp': 1,
        'context': 4,
        'tensor': 2,
    }
    with pytest.raises(ConfigError, match="'context': 3, 'tensor': 1} needs a multiple of 3"):
        mesh_sizes(MeshConfig(context=3), 8)
