"""Texts to classify: what is cut is told, what is refused is named, and two texts need two."""

import dataclasses
import types

import flax.linen as nn
import jax
import pytest
from helpers.data import load
from helpers.support import experiment

from transformer_jax.config import resolve
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference.attention_maps import attend_to_text
from transformer_jax.inference.generate import classify
from transformer_jax.inference.requirements import item_of_texts, line_of_input
from transformer_jax.models import build_model, dummy_batch
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import MeshConfig

LONG = '[MAX ' + '1 ' * 20 + ']'
CHANGES = {
    'model__kind': 'classifier',
    'data__task': 'listops(min_length=4, max_length=14, max_depth=3, max_args=3, examples=20)',
    'data__batching': 'buckets(lengths=(8, 16))',
    'data__vocab_size': 19,
}


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A classifier with random parameters, as far as `classify` reads a trained run."""
    folder = tmp_path_factory.mktemp('data')
    components, log = resolve(experiment(**CHANGES)), []
    data, _ = load(components.config, folder, splits=('train',))
    model = build_model(components.architecture)
    params = model.init(jax.random.key(0), dummy_batch(components.architecture))['params']
    return types.SimpleNamespace(
        config=components.config,
        data=data,
        model=model,
        params=nn.unbox(params),
        partitioner=Partitioner(MeshConfig()),
        workdir=types.SimpleNamespace(path=folder),
        log=log.append,
        lines=log,
    )


CUT = [  # texts, what the log says
    (['[MAX 1 2 ]'], []),
    (['[MAX 1 2 ]', LONG], ['are cut (first: texts[1])', 'cut: 1']),
    ([LONG, '[MAX 1 2 ]', LONG, LONG], ['are cut (first: texts[0])', 'cut: 3']),
]


@pytest.mark.parametrize(('texts', 'said'), CUT)
def test_a_text_that_is_cut_is_told(untrained, texts, said):
    untrained.lines.clear()
    assert len(list(classify(untrained, texts, item_of_texts))) == len(texts)
    assert untrained.lines == [f'texts longer than 16 tokens {end}' for end in said]


REFUSED = [  # the text that cannot be read, what is said of it
    ('', 'an empty text has no class'),
    (' ', 'an empty text has no class'),
    ('[MAX one ]', "'one' is no symbol of the vocabulary"),
    ('\udcff', 'invalid UTF-8 (byte 0xff)'),
]


@pytest.mark.parametrize(('text', 'said'), REFUSED)
@pytest.mark.parametrize(
    ('name', 'place'), [(item_of_texts, 'texts[1]: '), (line_of_input, 'standard input:2: ')]
)
def test_a_text_without_a_class_is_named_in_one_way(untrained, text, said, name, place):
    with pytest.raises(DataError) as caught:
        list(classify(untrained, ['[MAX 1 ]', text], name))
    assert str(caught.value).startswith(place + said)


def test_two_texts_are_none_of_these_tasks(untrained):
    with pytest.raises(ConfigError, match=r'model\.towers=2, but a source .* set model\.towers=1'):
        experiment(**CHANGES, model__towers=2)


def test_a_model_of_two_texts_does_not_classify_one(untrained):
    architecture = dataclasses.replace(untrained.model.architecture, towers=2)
    both = types.SimpleNamespace(**vars(untrained) | {'model': build_model(architecture)})
    with pytest.raises(ConfigError, match=r'model\.towers=2: .* a model of two texts'):
        list(classify(both, ['[MAX 1 ]']))
    with pytest.raises(ConfigError, match=r'model\.towers=2: .* a model of two texts'):
        attend_to_text(both, '[MAX 1 ]')
