"""Arguments of the Python API that make no sense: one line that names them, and no traceback.

Each of them once ended inside JAX or NumPy, or gave a wrong result without a word.
"""

import numpy as np
import pytest
from helpers.support import CONFIG_FILE

import transformer_jax
from transformer_jax.config import arguments
from transformer_jax.config.arguments import checked
from transformer_jax.data.tokenizers import BytePairs, Bytes, Characters
from transformer_jax.inference.run import Run

CONFIG = f'{CONFIG_FILE}:en-de'
TEXTS = ['seven', 'twenty-four', 'six hundred']
BPE, CHARACTERS = BytePairs.train(TEXTS, 26), Characters.train(['abc'], 7)
RUN = Run(None)  # arguments are checked before the model is touched

CALLS = [
    (lambda: RUN.probes(batches=0), 'batches=0 is outside 1 ≤ value'),
    (lambda: RUN.probes(batches=-1), 'batches=-1 is outside'),
    (lambda: RUN.probes(batches=1.5), 'batches=1.5 is of type float, it takes int'),
    (lambda: RUN.probes(batches=True), 'batches=True is of type bool, it takes int'),
    (lambda: RUN.generate('a', -3), 'max_tokens=-3 is outside 1 ≤ value ≤ 100,000'),
    (lambda: RUN.generate('a', 0), 'max_tokens=0 is outside'),
    (lambda: RUN.generate('a', 2.5), 'max_tokens=2.5 is of type float, it takes int'),
    (lambda: RUN.generate(seed=1.5), 'seed=1.5 is of type float, it takes int'),
    (lambda: RUN.generate(seed=2**32), 'seed=4294967296 is outside 0 ≤ value ≤ 4,294,967,295'),
    (lambda: RUN.generate(seed=2**70), 'seed=1180591620717411303424 is outside'),
    (lambda: RUN.generate(seed=-1), 'seed=-1 is outside'),
    (lambda: RUN.generate(None), 'prompt=None is of type NoneType, it takes str'),
    (lambda: RUN.generate(b'ab'), "prompt=b'ab' is of type bytes, it takes str"),
    (lambda: RUN.generate(['ab']), "prompt=['ab'] is of type list, it takes str"),
    (lambda: RUN.attention_weights(['seven']), "text=['seven'] is of type list, it takes str"),
    (lambda: RUN.attention_weights('a', 5), 'target=5 is of type int, it takes str'),
    (lambda: RUN.plot_attention('a', head=True), 'head=True is of type bool, it takes int'),
    (lambda: RUN.plot_attention('a', stack=0), 'stack=0 is of type int, it takes str'),
    (lambda: RUN.evaluate(None), 'split=None is of type NoneType, it takes str'),
    (lambda: RUN.metrics('valid'), "split='valid': did you mean 'validation'?"),
    (lambda: RUN.metrics(5), 'split=5 is of type int, it takes str'),
    (
        lambda: transformer_jax.init_state({}),
        'config={} is of type dict, it takes Exp',
    ),
    (
        lambda: transformer_jax.open_run('w', 1.5),
        'checkpoint=1.5 is of type float, it takes str',
    ),
    (lambda: BPE.encode({'seven': 1}), 'texts is a dict: give a list of texts'),
    (lambda: BPE.encode({'seven'}), 'texts is a set: give a list of texts'),
    (lambda: BPE.decode([[99999]]), 'ids=[99999]: token ids are whole numbers from 0 to 25'),
    (lambda: BPE.decode([[5.7]]), 'ids=[5.7]: token ids are whole numbers'),
    (lambda: BPE.decode([[True]]), 'ids=[True]: token ids are whole numbers'),
    (lambda: BPE.decode([[2**70]]), 'token ids are whole numbers'),
    (lambda: BPE.decode([[[5], [5, 6]]]), 'token ids are whole numbers from 0 to 25, in one list'),
    (lambda: BPE.decode([5]), 'ids=[5]: give a list of rows'),
    (lambda: BPE.decode(5), 'ids=5: give a list of rows'),
    (lambda: BPE.decode(None), 'ids=None: give a list of rows'),
    (lambda: BPE.pieces([99999]), 'ids=[99999]: token ids are whole numbers'),
    (lambda: BPE.pieces('5'), "ids='5': token ids are whole numbers"),
    (lambda: BPE.pieces([[5]]), 'ids=[[5]]: token ids are whole numbers from 0 to 25, in one list'),
    (lambda: Bytes(b'').decode([[300]]), 'ids=[300]: token ids are whole numbers from 0 to 259'),
    (lambda: CHARACTERS.pieces([-1]), 'ids=[-1]: token ids are whole numbers from 0 to 6'),
    (lambda: CHARACTERS.decode([[-1]]), 'ids=[-1]: token ids are whole numbers'),
    (lambda: BytePairs.train(['  ', ''], 50), 'the training text is empty: it has no character'),
    (lambda: transformer_jax.load_config(CONFIG, {5: 5}), "5 is no key: write it as 'train.steps'"),
    (lambda: transformer_jax.load_config(CONFIG, {'': 5}), "'' is no key: write it as"),
    (
        lambda: transformer_jax.load_config(CONFIG, {'train': {'steps': 5}}),
        "train={'steps': 5} is a section: override its keys, 'train.steps'",
    ),
]


@pytest.mark.parametrize(('call', 'message'), CALLS, ids=[message[:40] for _, message in CALLS])
def test_an_argument_without_meaning_is_one_line(call, message):
    with pytest.raises((transformer_jax.ConfigError, transformer_jax.DataError)) as caught:
        call()
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('value', [np.int64(5), np.uint8(5), 5])
def test_a_number_of_numpy_is_a_number(value):
    steps = transformer_jax.load_config(CONFIG, {'train.steps': value}).train.steps
    assert (type(steps), steps) == (int, 5)
    assert BPE.pieces([value]) == BPE.pieces(np.array([5])) == BPE.pieces([5])
    assert BPE.decode(np.array([[5, 6]])) == BPE.decode([[5, value + 1]])


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('model.dropout', np.float32(0.5), 0.5),
        ('model.attention_dropout', np.bool_(True), True),
        ('data.source', np.str_('en'), 'en'),
    ],
)
def test_scalars_of_numpy_are_values(key, value, expected):
    section, name = key.split('.')
    loaded = getattr(getattr(transformer_jax.load_config(CONFIG, {key: value}), section), name)
    assert (type(loaded), loaded) == (type(expected), expected)


class Text(str):
    """A text of another library, as of a parser of pages."""


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({'text': Text('a')}, Text('a')),
        ({'text': np.str_('a')}, 'a'),
        ({'text': None}, None),
        ({'seed': np.int64(3)}, 3),
        ({'scale': 2}, 2.0),
        ({'items': {1: 2}}, {1: 2}),
    ],
)
def test_what_fits_is_passed_on(given, expected):
    @checked
    def echo(
        text: str | None = '', *, seed: int = 0, scale: float = 1.0, items: dict | None = None
    ):
        return {'text': text, 'seed': seed, 'scale': scale, 'items': items}

    [name] = given
    found = echo(**given)[name]
    assert found == expected
    assert isinstance(found, type(expected))


def test_every_range_is_that_of_an_argument():
    names = set()
    for function in (*vars(Run).values(), transformer_jax.init_state):
        names |= set(getattr(function, '__annotations__', ()))
    assert set(arguments.RANGES) <= names
