"""The one pass of evaluation against loops over all logits, in NumPy float64."""

import dataclasses
import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.support import experiment, quiet
from sacrebleu.metrics import BLEU

from transformer_jax.config import Components, resolve
from transformer_jax.config.values import CHOICES
from transformer_jax.data import Data, load_data
from transformer_jax.errors import WorkdirError
from transformer_jax.evaluation.evaluator import Evaluation, Evaluator
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.models import dummy_batch
from transformer_jax.partitioning.partitioner import Partitioner

TASKS = {
    'translation': {},
    'packed symbols': {
        'data.task': 'mqar(vocab_size=16, pairs=2, length=8, held_out=30)',
        'data.vocab_size': 20,
        'model.kind': 'decoder_only',
        'data.batching': 'packed(length=32)',
        'evaluate.batch_tokens': 96,
    },
    'classes': {
        'data.task': 'listops(min_length=8, max_length=16, max_depth=3, held_out=30)',
        'data.vocab_size': 19,
        'model.kind': 'classifier',
        'data.batching': 'buckets(lengths=(8, 24))',
        'evaluate.batch_tokens': 96,
    },
    'windows': {
        'data.task': 'text_file',
        'data.tokenizer': 'characters',
        'data.vocab_size': 23,
        'model.kind': 'decoder_only',
        'data.batching': 'packed(length=16)',
        'evaluate.batch_tokens': 64,
        'evaluate.stride': 5,
    },
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """An experiment with random parameters, its evaluation, and all logits of its batches."""

    components: Components
    data: Data
    params: dict
    evaluator: Evaluator
    evaluation: Evaluation

    def batches(self):
        """Yield (batch, its logits_BTV in float64, the numbers of its examples)."""
        stride = self.components.config.evaluate.stride
        plan, _ = self.data.evaluation('validation', stride)
        forward = jax.jit(self.evaluator.model.apply)
        batches = self.data.eval_batches('validation', 8, lambda rows: (0, rows), stride)
        for number, batch in enumerate(batches):
            logits_BTV = np.asarray(forward({'params': self.params}, batch), np.float64)
            yield batch, logits_BTV, plan.step(number).examples.tolist()


@pytest.fixture(scope='module', params=TASKS)
def setup(request, tmp_path_factory) -> Setup:
    """A tiny experiment of each form of task."""
    folder = tmp_path_factory.mktemp('data')
    changes = TASKS[request.param]
    if request.param == 'windows':
        (folder / 'text').write_text('a small text, of which some letters come back\n' * 12)
        changes = changes | {'data.source_dir': str(folder), 'data.task': "text_file(train='text')"}
    components, log = resolve(experiment(**changes)), quiet
    data = load_data(components.pipeline, folder, log, ('train', 'validation'))
    partitioner = Partitioner(components.config.parallel.mesh)
    evaluator = Evaluator(components, data, partitioner, log)
    init = evaluator.model.init(jax.random.PRNGKey(0), dummy_batch(components.architecture))
    params = jax.tree.map(lambda a: 2 * np.asarray(a), nn.meta.unbox(init['params']))
    evaluation = evaluator.evaluate(params, 'validation', max_examples=6)
    return Setup(components, data, params, evaluator, evaluation)


def test_every_metric_of_the_task_is_measured_and_nothing_else(setup):
    scores = setup.evaluation.scores
    assert {name for name in scores if name in METRICS} == set(setup.data.task.scores)
    assert json.loads(json.dumps(scores)) == scores


def test_likelihood_is_that_of_all_logits(setup):
    nll = correct = weight = 0.0
    for batch, logits_BTV, _ in setup.batches():
        log_norm_BT = np.log(np.exp(logits_BTV).sum(-1))
        for b, t in np.argwhere(batch.weights_BT > 0):
            target, w = batch.targets_BT[b, t], float(batch.weights_BT[b, t])
            nll += w * (log_norm_BT[b, t] - logits_BTV[b, t, target])
            correct += w * (logits_BTV[b, t].argmax() == target)
            weight += w
    scores = setup.evaluation.scores
    assert scores['loss'] == pytest.approx(nll / weight, rel=1e-5)
    assert scores['perplexity'] == pytest.approx(math.exp(nll / weight), rel=1e-5)
    assert (scores['accuracy'], scores['tokens']) == (correct / weight, weight)
    assert scores.get('stride', 0) == setup.components.config.evaluate.stride
    if setup.data.task.predicts_natural_text:
        texts = setup.data.text('validation').target
        end = not setup.data.task.windowed  # contiguous text has none
        size = sum(len(text.encode()) + end for text in texts)
        assert scores['bits_per_byte'] == pytest.approx(nll / math.log(2) / size, rel=1e-5)


def test_examples_are_right_where_all_their_counted_tokens_are(setup):
    """A loop over rows and segments; a row of padding belongs to no example."""
    right = {}
    for batch, logits_BTV, examples in setup.batches():
        numbers = iter(examples)
        for row in range(len(batch.targets_BT)):
            for segment in range(1, batch.segments_BT[row].max() + 1):
                own_T = (batch.segments_BT[row] == segment) & (batch.weights_BT[row] > 0)
                found_T = logits_BTV[row].argmax(-1) == batch.targets_BT[row]
                right[next(numbers)] = bool(found_T[own_T].all())
    task, examples = setup.data.task, setup.evaluation.examples
    name = 'accuracy' if task.predicts_class else 'exact_match'
    if not task.predicts_class and not task.exact_match_by_tokens:
        assert set(examples) == ({'bleu', 'exact_match'} if task.translates else set())
        return
    assert set(examples) == {name}
    assert examples[name] == [[int(right[number])] for number in range(30)]
    assert setup.evaluation.scores[name] == sum(right.values()) / 30
    assert setup.evaluation.scores['examples'] == 30


def test_confusion_counts_every_example_once(setup):
    classes = setup.data.task.classes()
    if not classes:
        assert 'confusion' not in setup.evaluation.scores
        return
    confusion = np.zeros((len(classes), len(classes)), int)
    for batch, logits_BTV, _ in setup.batches():
        for row in np.flatnonzero(batch.weights_BT[:, 0]):
            confusion[batch.targets_BT[row, 0], logits_BTV[row, 0].argmax()] += 1
    assert setup.evaluation.scores['confusion'] == confusion.tolist()


def test_translations_are_scored_sentence_by_sentence(setup, tmp_path):
    evaluation = setup.evaluation
    evaluation.write_samples(tmp_path / 'samples' / 'validation.txt')
    if not setup.data.task.translates:
        assert evaluation.hypotheses is None
        assert not list(tmp_path.iterdir())
        return
    texts = setup.data.text('validation')
    assert evaluation.hypotheses == setup.evaluator.translate(setup.params, texts.source[:6])
    lines = (tmp_path / 'samples' / 'validation.txt').read_text().splitlines()
    assert lines == evaluation.hypotheses
    counts = np.array(evaluation.examples['bleu'])
    tokenizer = BLEU(tokenize=setup.components.config.evaluate.bleu_tokenize).tokenizer
    for hypothesis, reference, row in zip(lines, texts.target, counts, strict=False):
        words = [len(tokenizer(text).split()) for text in (hypothesis, reference)]
        assert row[8:].tolist() == words
    total = counts.sum(0).tolist()
    bleu = BLEU.compute_bleu(total[:4], total[4:8], *total[8:], smooth_method='exp')
    assert bleu.score == evaluation.scores['bleu']
    assert len(counts) == len(evaluation.examples['exact_match']) == evaluation.scores['sentences']


def test_other_rows_give_the_same_likelihood(setup):
    """Rows of other lengths change nothing but where examples are."""
    if setup.data.task.windowed or setup.data.task.predicts_class:
        return
    longest = setup.data.batching.row_lengths()[-1]
    batching = resolve(
        experiment(**{'data.batching': f'buckets(lengths=({longest // 2}, {longest}))'})
    ).batching
    other = setup.evaluator.with_batching(batching)
    found = other.teacher_forced(setup.params, 'validation')
    for name in ('loss', 'accuracy', 'tokens'):
        assert found.scores[name] == pytest.approx(setup.evaluation.scores[name], rel=1e-5)
    if setup.data.task.exact_match_by_tokens:
        assert found.examples == setup.evaluation.examples


def test_a_checkpoint_can_be_chosen_by_the_metrics_that_the_table_allows():
    allowed = {name for name, kind in METRICS.items() if kind.selects_checkpoint}
    assert set(CHOICES['evaluate.best_metric']) == allowed


def test_the_directory_of_samples_must_be_writable(tmp_path):
    (tmp_path / 'samples').write_text('')
    with pytest.raises(WorkdirError):
        Evaluation({}, {}, ['a']).write_samples(Path(tmp_path) / 'samples' / 'validation.txt')
