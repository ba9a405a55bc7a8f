"""A trained model of any kind says the same on every mesh, and no device holds more than its part.

The answers of one device are compared with those of eight, however they are arranged.
"""

import contextlib

import jax
import numpy as np
import pytest
from helpers.support import experiment, quiet

from transformer_jax.errors import ConfigError
from transformer_jax.inference import generate, probes
from transformer_jax.inference.attention_maps import attend_to_text
from transformer_jax.inference.head_sums import PROBES
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.partitioning import mesh as meshes
from transformer_jax.partitioning import partitioner as partitioners
from transformer_jax.schema import MeshConfig
from transformer_jax.training.train import train

MESHES = ('data=8', 'fsdp=8', 'data=2,tensor=4', 'data=2,fsdp=2,tensor=2')
SIZES = {'model__num_heads': 4, 'train__steps': 4, 'checkpoint__every': 2}
TRANSLATOR = {'data__vocab_size': 88}
LANGUAGE = TRANSLATOR | {
    'model__kind': 'decoder_only',
    'data__batching': 'buckets(lengths=(48,))',
    'train__batch_tokens': 768,
}
CLASSIFIER = {
    'model__kind': 'classifier',
    'data__task': 'listops(min_length=5, max_length=20, max_depth=3, max_args=4, examples=50)',
    'data__vocab_size': 19,
    'evaluate__best_metric': 'accuracy',
    'parallel__rules': 'vocab=none',  # 19 symbols cannot be cut
}
KINDS = {'encoder_decoder': TRANSLATOR, 'decoder_only': LANGUAGE, 'classifier': CLASSIFIER}


def one_device(config, num_seeds=1, devices=()):
    return meshes.make_mesh(MeshConfig(), num_seeds, jax.devices()[:1])


@contextlib.contextmanager
def on_one_device():
    """Lets runs that are opened inside use one device of the eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioners, 'make_mesh', one_device)
        yield


@pytest.fixture(scope='module', params=KINDS)
def workdir(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('meshes') / request.param
    train(experiment(**SIZES | KINDS[request.param]), path, quiet)
    return path


def say(trained) -> list[str]:
    """What the model says of some texts: translations, a continuation, or classes."""
    kind = trained.config.model.kind
    if kind == 'encoder_decoder':
        [lines] = generate.translate(trained, [['seven', '', 'twenty-four', 'nine']])
        return lines
    if kind == 'decoder_only':
        return [''.join(generate.Generator(trained, 6).stream('twenty', seed=0))]
    return [name for name, _ in generate.classify(trained, text_of(trained))]


def text_of(trained) -> list[str]:
    return ['[MAX 1 2 ]'] if trained.config.model.kind == 'classifier' else ['twenty-four']


def findings(trained) -> dict:
    """What all commands find of a trained run."""
    [text] = text_of(trained)
    target = 'vier' if trained.config.model.kind == 'encoder_decoder' else None
    [checkpoint] = probes.probe(trained, 'validation', 2)['checkpoints']
    return {
        'scores': trained.evaluator.evaluate(trained.params, 'validation').scores,
        'says': say(trained),
        'attention': attend_to_text(trained, text, target).weights,
        'probes': [[row[name] for name in PROBES] for row in checkpoint['sites']],
    }


@pytest.fixture(scope='module')
def expected(workdir):
    with on_one_device():
        trained = TrainedRun(workdir, 'last', quiet, {})
    assert len(jax.tree.leaves(trained.params)[0].sharding.device_set) == 1
    return findings(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    'mesh', [*(pytest.param(mesh, marks=pytest.mark.rare) for mesh in MESHES[:-1]), MESHES[-1]]
)
def test_every_command_finds_what_one_device_finds(workdir, expected, mesh):
    found = findings(TrainedRun(workdir, 'last', quiet, {}, mesh=mesh))
    assert found['says'] == expected['says']
    assert found['scores'].keys() == expected['scores'].keys()
    for name, value in expected['scores'].items():
        if isinstance(value, int | float):
            assert found['scores'][name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
        elif not name.endswith('interval'):
            assert found['scores'][name] == value, name
    for site, weights in expected['attention'].items():
        np.testing.assert_allclose(found['attention'][site], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.array(found['probes'], float), np.array(expected['probes'], float), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize('checkpoint', ['last', 'avg:2'])
def test_a_device_holds_its_part_alone(workdir, checkpoint):
    """With fsdp 8 a device has an eighth of all that is cut, whatever was averaged."""
    trained = TrainedRun(workdir, checkpoint, quiet, {}, mesh='fsdp=8')
    whole, cut = 0, 0
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(trained.params):
        parts = 1 if array.sharding.is_fully_replicated else 8
        whole, cut = whole + array.nbytes // parts, cut + array.nbytes * (parts > 1)
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {whole}
    assert cut > 0.7 * sum(array.nbytes for array in jax.tree.leaves(trained.params))
    with on_one_device():
        alone = TrainedRun(workdir, checkpoint, quiet, {})
    jax.tree.map(np.testing.assert_array_equal, trained.params, alone.params)


@pytest.mark.slow
def test_the_mesh_of_the_run_is_kept_where_it_fits(tmp_path):
    changes = SIZES | TRANSLATOR | {'train__steps': 1}
    config = experiment(**changes, parallel__mesh__fsdp=4, parallel__rules='embed=none')
    train(config, tmp_path, quiet)
    trained = TrainedRun(tmp_path, '', quiet, {})
    assert dict(trained.partitioner.mesh.shape) == {'data': 2, 'fsdp': 4, 'context': 1, 'tensor': 1}
    table = trained.params['target_embedding']['table']
    assert table.addressable_shards[0].data.shape == (88 // 4, 16)
    kernel = trained.params['encoder_0']['ffn']['in_kernel']
    assert kernel.sharding.is_fully_replicated  # as parallel.rules says
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'device_count', lambda: 6)
        patch.setattr(partitioners, 'make_mesh', one_device)
        TrainedRun(tmp_path, '', lines.append, {})
    assert 'needs a multiple of 4 devices, there are 6: rows alone are cut over the 6' in lines[0]


@pytest.mark.parametrize(
    ('mesh', 'message'),
    [
        ('fsdp', "'fsdp' is no NAME=VALUE, as in --mesh=fsdp=4,tensor=2"),
        ('fdsp=8', "no mesh axis 'fdsp'; did you mean 'fsdp'?"),
        ('fsdp=0', 'fsdp=0 is no number of devices; -1 takes the rest'),
        ('fsdp=x', 'fsdp=x is no number of devices'),
        ('fsdp=2,fsdp=4', "'fsdp' comes twice"),
        ('fsdp=-1,tensor=-1', 'at most one size may be -1'),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(mesh, message):
    with pytest.raises(ConfigError) as caught:
        meshes.parse_mesh(mesh)
    assert str(caught.value).startswith(f'--mesh={mesh}: {message}')


@pytest.mark.parametrize(
    ('mesh', 'expected'),
    [('fsdp=8', (-1, 8, 1)), ('fsdp=-1', (1, -1, 1)), ('data=2,tensor=4', (2, 1, 4))],
)
def test_data_takes_the_devices_that_are_left(mesh, expected):
    found = meshes.parse_mesh(mesh)
    assert (found.data, found.fsdp, found.tensor) == expected
