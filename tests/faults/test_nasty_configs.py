"""Nasty configurations and flags through `transformer-jax`: exit 2, one message, nothing made.

They are refused before any work: nothing is compiled, and little is called or allocated.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.support import CONFIG
from helpers.work import MOST_BYTES, MOST_CALLS, measured_work

DIGITS = '9' * 400
NASTY = [
    'model.d_model=1000000000000',
    f'model.d_model={DIGITS}',
    'model.d_model=0',
    'model.d_ff=99999999999999999999',
    'model.num_heads=1000000000',
    'model.num_kv_heads=1000000000',
    'model.head_dim=1000000000',
    'model.value_dim=-1',
    'model.encoder_layers=10000000',
    'model.decoder_layers=10000000',
    'model.towers=3',
    'model.logit_softcap=inf',
    'model.dropout=nan',
    'model.dropout=0.99999999999',
    'model.dropout=1e400',
    'model.attention=1000000000*softmax',
    'model.attention=' + 'softmax, ' * 22_000,
    'model.attention=softmax(mask=' + '&'.join(['full'] * 5000) + ')',
    'model.attention=softmax(mask=' + '(' * 5000 + 'full' + ')' * 5000 + ')',
    'model.attention=' + '-' * 9000 + '1',
    'model.attention=softmax(scale=1e999)',
    'model.attention=softmax(scale=' + '9' * 5000 + ')',
    'model.attention=softmax(mask=window(9223372036854775808))',
    'model.attention=softmax(mask=dilated(10000000, 10000000))',
    'model.attention=softmax(mask=bigbird(block=1, length=10000000))',
    'model.attention=latent(rank=1000000000000)',
    'model.attention=linear(feature=favor(features=1000000000))',
    'model.position=learned(max_len=1000000000000)',
    'model.position=t5(buckets=1000000000)',
    'model.position=rope(theta=nan)',
    'model.norm=layer(eps=0)',
    'model.ffn=moe(experts=1000000000)',
    'model.ffn=moe(capacity=1e-60)',
    'data.vocab_size=2147483647',
    'data.vocab_size=4',
    'data.prefetch=1000000000',
    'data.max_train_examples=-1',
    'data.batching=buckets(lengths=(16, 1000000000000))',
    'data.batching=packed(length=1000000000000)',
    'data.task=number_words(limit=1000000000000)',
    'data.task=listops(max_depth=1000000000, max_args=1000000000)',
    'data.task=mqar(vocab_size=2147483647)',
    'train.steps=1' + '0' * 30,
    'train.steps=99999999999999999999',
    f'train.steps={DIGITS}',
    'train.steps=' + '9' * 5000,
    'train.seed=4294967296',
    'train.num_seeds=1000000000',
    'train.batch_tokens=1000000000000',
    'train.accumulate=1000000000',
    'train.label_smoothing=1.0',
    'train.log_every=0',
    'train.ema=0.99999999999',
    'optim.optimizer=adam(b1=-3.0, b2=2.0, eps=-1.0)',
    'optim.optimizer=adafactor(decay=2)',
    'optim.optimizer=muon(steps=0)',
    'optim.optimizer=lion(b1=2)',
    'optim.schedule=linear(warmup=-5)',
    'optim.schedule=inverse_sqrt(warmup=0)',
    'optim.schedule=noam(warmup=0)',
    'optim.learning_rate=nan',
    'optim.learning_rate=-1',
    'optim.clip=inf',
    'evaluate.batch_tokens=1000000000000',
    'evaluate.stride=1000000000',
    'decode.beam=1000000000',
    'decode.max_extra_tokens=1000000000',
    'decode.length_penalty=1e30',
    'decode.top_p=0',
    'decode.top_k=1000000000',
    'checkpoint.keep=0',
    'parallel.mesh.data=1000000000',
]

HUGE_FLAGS = [
    ('generate', 'max_tokens'),
    ('generate', 'seed'),
    ('generate', 'samples'),
    ('bench train', 'steps'),
    ('bench decode', 'longest'),
    ('bench decode', 'rows'),
    ('bench attention', 'rows'),
    ('bench attention', 'heads'),
    ('bench attention', 'kv_heads'),
    ('bench attention', 'head_dim'),
    ('ablate', 'seeds'),
    ('ablate', 'seeds_per_program'),
    ('inspect', 'devices'),
]


@pytest.mark.parametrize(('command', 'flag'), HUGE_FLAGS)
def test_a_huge_number_of_a_flag_is_refused(call, command, flag):
    with measured_work() as work:
        code, output, errors = call(*command.split(), f'--{flag}={10**12}')
    assert work.faults == []
    assert (code, output) == (2, '')
    assert f'{flag}={10**12}' in errors
    assert len(errors.splitlines()) == 1


def faults(nasty, call, workdir):
    """List what is wrong with the way in which a configuration is refused."""
    code, output, errors = -1, '', ''
    with measured_work() as work:
        code, output, errors = call('train', CONFIG, f'--config.{nasty}', f'--workdir={workdir}')
    key = nasty.partition('=')[0]
    wrong = {
        f'exit code {code}': code != 2,
        f'output {output[:80]!r}': bool(output),
        'a traceback': 'Traceback' in errors,
        f'the key is not named: {errors[:200]!r}': key not in errors,
        'a long message': len(errors) > 1000 or len(errors.splitlines()) > 3,
        'a workdir': workdir.exists(),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong] + work.faults


@pytest.mark.slow
@pytest.mark.fault('nasty configurations')
@pytest.mark.parametrize('nasty', [pytest.param(nasty, id=nasty[:60]) for nasty in NASTY])
def test_a_nasty_configuration_is_refused(call, tmp_path, nasty):
    assert faults(nasty, call, tmp_path / 'run') == []


def call_much():
    for _ in range(MOST_CALLS):
        len('')


MUCH = {
    'calls': call_much,
    'bytes': lambda: np.zeros(MOST_BYTES + 1, np.uint8),
    'compile': lambda: jax.jit(lambda x: x + 1)(np.ones(3)),
    'trace': lambda: jax.eval_shape(lambda x: jnp.sin(x) + 1, np.ones(3)),
}


@pytest.mark.parametrize('what', MUCH)
def test_much_work_is_found(what):
    with measured_work() as work:
        MUCH[what]()
    [fault] = work.faults[-1:]
    assert fault.split()[1].startswith(what) or what in fault


def test_no_work_is_none():
    with measured_work() as work:
        np.zeros(3)
    assert work.faults == []
