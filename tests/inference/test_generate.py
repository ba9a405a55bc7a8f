"""Continuations of prompts by a trained language model, and commands that it cannot serve."""

import jax
import numpy as np
import pytest
from helpers.support import experiment, quiet

from transformer_jax.batch import BOS, EOS, Batch
from transformer_jax.cli import main
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.errors import DataError
from transformer_jax.inference.generate import Generator
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.training.train import train

CHANGES = {
    'model__kind': 'decoder_only',
    'data__batching': 'buckets(lengths=(48,))',
    'train__batch_tokens': 768,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('language') / 'run'
    train(
        experiment(**CHANGES, model__position='learned(max_len=100)', decode__max_extra_tokens=4),
        path,
        quiet,
    )
    return path


@pytest.fixture(scope='module')
def trained(workdir):
    return TrainedRun(workdir, 'last', quiet, {})


def sampled(trained, seed, temperature=1.0, **options):
    """Continue 'forty-' by 12 tokens that are sampled."""
    sampling = trained.with_decoding({'method': 'sample', 'temperature': temperature})
    return ''.join(Generator(sampling, 12, **options).stream('forty-', seed))


def test_greedy_streaming_is_the_greedy_decoder(trained):
    generator = Generator(trained, 10)
    text = ''.join(generator.stream('twenty', seed=0))
    [ids] = trained.data.tokenizer.encode(['twenty'])
    decoder = make_decoder(
        trained.model,
        trained.config.decode.__class__(method='greedy', max_extra_tokens=10 - len(ids)),
        trained.data.tokenizer.vocab_size,
    )
    source, places = generator._padded(ids)
    key, row = np.zeros(2, np.uint32), np.zeros(1, np.int32)
    tokens, _ = decoder(trained.params, source, *places, key, row)
    [decoded] = trained.data.tokenizer.decode(np.asarray(tokens).tolist())
    assert len(decoded) > 3
    # The decoder's last token, at the limit, is EOS.
    assert text[: len(decoded)] == decoded


def test_a_prompt_is_what_the_model_has_read(trained):
    """The first token is the most likely one that teacher forcing gives after the prompt."""
    [ids] = trained.data.tokenizer.encode(['seven'])
    row = np.array([[*ids, EOS]], np.int32)
    places = np.arange(row.shape[1], dtype=np.int32)[None], np.ones_like(row)
    inputs = np.array([[BOS, *ids]], np.int32)
    logits = trained.model.apply(
        {'params': trained.params}, Batch(None, None, None, inputs, row, *places, row * 1.0)
    )
    best = int(np.argmax(np.asarray(logits)[0, -1, EOS:])) + EOS
    text = ''.join(Generator(trained, 1).stream('seven', seed=0))
    assert text == trained.data.tokenizer.decode([[best]])[0]


def by_beam(trained, max_tokens, **decode):
    return Generator(trained.with_decoding({'method': 'beam', **decode}), max_tokens)


@pytest.mark.parametrize('prompt', ['', 'twenty'])
@pytest.mark.parametrize('max_tokens', [1, 2, 9])
def test_a_search_with_one_hypothesis_is_greedy(trained, prompt, max_tokens):
    greedy = ''.join(Generator(trained, max_tokens).stream(prompt, 0))
    assert greedy
    assert by_beam(trained, max_tokens, beam=1, length_penalty=0.0).search(prompt) == greedy
    for penalty in (0.0, 5.0):
        found = by_beam(trained, max_tokens, beam=1, length_penalty=penalty)
        assert ''.join(found.continue_text(prompt, 0)) == greedy


@pytest.mark.parametrize('prompt', ['', 'twenty'])
@pytest.mark.parametrize(('max_tokens', 'beam', 'alpha'), [(1, 3, 0.6), (6, 4, 0.0), (6, 4, 1.0)])
def test_the_score_of_a_search_is_that_of_teacher_forcing(trained, prompt, max_tokens, beam, alpha):
    generator = by_beam(trained, max_tokens, beam=beam, length_penalty=alpha)
    ids = generator._encode(prompt)
    found = generator._compiled_search(trained.params, *generator._padded(ids))
    lengths = np.asarray(found.lengths_BK)[0]
    assert found.tokens_BKT.shape == (1, beam, max_tokens)
    for tokens, length, score in zip(found.tokens_BKT[0], lengths, found.scores_BK[0], strict=True):
        tokens = np.asarray(tokens)[:length].tolist()
        assert tokens[-1] == EOS or length == max_tokens
        row = np.array([[*ids, *tokens]], np.int32)
        places = np.arange(row.shape[1], dtype=np.int32)[None], np.ones_like(row)
        inputs = np.concatenate([[[BOS]], row[:, :-1]], axis=1, dtype=np.int32)
        logits = trained.model.apply(
            {'params': trained.params}, Batch(None, None, None, inputs, row, *places, row * 1.0)
        )
        log_p = jax.nn.log_softmax(logits)[0, np.arange(len(ids), row.shape[1]), tokens].sum()
        np.testing.assert_allclose(score * ((5 + length) / 6) ** alpha, log_p, rtol=1e-4)


def test_a_seed_decides_what_is_drawn(trained):
    one, same, other = (sampled(trained, seed, temperature=2.0) for seed in (1, 1, 2))
    assert one == same != other


def test_a_stop_string_ends_the_text_before_it(trained):
    whole = sampled(trained, 3, temperature=2.0)
    assert len(whole) > 3
    stop = whole[2:4]
    assert sampled(trained, 3, temperature=2.0, stop=(stop,)) == whole[: whole.index(stop)]


def test_what_does_not_fit_is_refused(trained):
    with pytest.raises(
        DataError, match=r'max_tokens=99 more may follow, but the model reads 100 at most'
    ):
        list(Generator(trained, 99).stream('twenty-one', 0))


def test_the_command_line_says_what_a_model_can_do(workdir, capsys):
    assert (
        main(
            ['generate', f'--workdir={workdir}', '--prompt=six', '--max_tokens=4', '--method=beam']
        )
        == 0
    )
    assert capsys.readouterr().out.startswith('six')
    assert main(['classify', f'--workdir={workdir}']) == 2
    found = capsys.readouterr().err
    assert "a model of kind 'decoder_only', which cannot; its commands are generate," in found
    picture = workdir.parent / 'heads.png'
    assert main(['attention', f'--workdir={workdir}', '--text=six', f'--out={picture}']) == 0
    found = capsys.readouterr()
    assert (found.out, picture.exists()) == ('', True)
    assert f'wrote {picture}' in found.err
    assert main(['evaluate', f'--workdir={workdir}', '--lengths=24,48,101']) == 2
    assert 'reach from 2 to 100 tokens' in capsys.readouterr().err
    assert main(['evaluate', f'--workdir={workdir}', '--split=validation', '--lengths=24,48']) == 0
    assert 'exact_match' in capsys.readouterr().out
    assert (workdir / 'lengths-validation.png').exists()
