"""The evaluation of parameters on a split: one teacher-forced pass, and translations."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from transformer_jax.config.components import Components
from transformer_jax.data import Data, source_batches
from transformer_jax.data.batching import Batching
from transformer_jax.errors import DataError
from transformer_jax.evaluation.metrics import (
    bleu_tokenizer,
    classification_metrics,
    perplexities,
    perplexity,
    translation_metrics,
    wilson_interval,
)
from transformer_jax.evaluation.programs import compile_decoder, compile_scores
from transformer_jax.evaluation.teacher_forcing import ScoredBatch, TokenTotals
from transformer_jax.evaluation.text_size import counted_text_size
from transformer_jax.models import build_model
from transformer_jax.partitioning.partitioner import Partitioner, to_host
from transformer_jax.storage.files import make_directory, write_text

Log = Callable[[str], None]
Scores = dict[str, Any]
Examples = dict[str, list[list[int]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of a split.

    Attributes:
        scores: metrics by name, and what describes them (intervals, signatures, counts): plain
            values for JSON.
        examples: what the metrics are made of, example by example in the order of the split, as
            far as they are made of examples. 'accuracy' of classes and 'exact_match' hold [0] or
            [1]; 'bleu' the counts that `translation_metrics` describes.
        hypotheses: the translations of the split's first sentences; None where none are made.
    """

    scores: Scores
    examples: Examples
    hypotheses: list[str] | None = None

    def write_samples(self, path: epath.Path) -> None:
        """Write the hypotheses, one a line, where there are any; only the first process writes."""
        if self.hypotheses is None or jax.process_index() != 0:
            return
        make_directory(path.parent)
        write_text(path, ''.join(f'{line}\n' for line in self.hypotheses))


class Evaluator:
    """Evaluates parameters against an experiment's data; keeps what it compiles between calls.

    Attributes:
        config: of the experiment.
        model: of the parameters.
        data: whose splits are read.
        log: receives remarks.
    """

    def __init__(
        self,
        components: Components,
        data: Data,
        partitioner: Partitioner,
        log: Log,
        before_batch: Callable[[], None] = lambda: None,
    ):
        """Prepare the compiled functions; each compiles for a shape when it first meets it.

        Args:
            components: the experiment.
            data: its data, with the splits that will be evaluated.
            partitioner: places batches and compiles functions, for a single seed.
            log: receives remarks.
            before_batch: called before every batch; ends the evaluation by what it raises.
        """
        self.config, self.data, self.log = components.config, data, log
        self._before_batch = before_batch
        self.model = build_model(components.architecture)
        self._partitioner = partitioner
        self._score = compile_scores(self.model, partitioner)
        self._decode = compile_decoder(
            components, self.model, partitioner, data.tokenizer.vocab_size
        )

    def with_batching(self, batching: Batching) -> 'Evaluator':
        """Make an evaluator that reads the same data in other rows; compiled code is shared."""
        other = copy.copy(self)
        other.data = dataclasses.replace(self.data, batching=batching)
        return other

    def evaluate(
        self, params: Any, split: str, max_examples: int = 0, seed: int | None = None
    ) -> Evaluation:
        """Measure all metrics of a split, `task.scores`.

        Args:
            params: of the model.
            split: 'validation' or 'test'.
            max_examples: how many sentences are translated at most; 0: all.
            seed: of decoding by sampling; by default `train.seed`.
        """
        forced = self.teacher_forced(params, split)
        if not self.data.task.translates:
            return forced
        texts = self.data.text(split)
        count = min(max_examples or len(texts), len(texts))
        assert texts.source is not None, 'a task that is translated has sources'
        hypotheses = self.translate(params, texts.source[:count], seed)
        settings, references = self.config.data, texts.target[:count]
        scores, examples = translation_metrics(
            hypotheses,
            references,
            source=settings.source,
            target=settings.target,
            tokenize=self._bleu_tokenizer(references),
        )
        return Evaluation(forced.scores | scores, forced.examples | examples, hypotheses)

    def teacher_forced(self, params: Any, split: str) -> Evaluation:
        """Measure what needs no decoding, in one pass over a split.

        The loss is in nats per counted token (EOS too), without label smoothing. Exact match is
        the share of examples all of whose counted tokens are the most likely ones.
        """
        task, totals = self.data.task, TokenTotals()
        _, examples = self.data.evaluation(split, self.config.evaluate.stride)
        exact_E = np.zeros(len(examples.lengths), bool)
        predicted, labels = [], []
        for scored in self.score_batches(params, split):
            totals.add(scored)
            exact_E[scored.step.examples] = scored.exact_E()
            if task.predicts_class:
                predicted += scored.predicted_BT[scored.counted_BT].tolist()
                labels += scored.batch.targets_BT[scored.counted_BT].tolist()
        scores, by_example = self._likelihood(totals, split), {}
        if task.predicts_class:
            scores |= classification_metrics(predicted, labels, task.classes())
            by_example['accuracy'] = [[int(exact)] for exact in exact_E]
        elif task.exact_match_by_tokens:
            exact = int(exact_E.sum())
            scores |= {
                'exact_match': exact / len(exact_E),
                'exact_match_interval': wilson_interval(exact, len(exact_E)),
                'examples': len(exact_E),
            }
            by_example['exact_match'] = [[int(exact)] for exact in exact_E]
        return Evaluation(scores, by_example)

    def score_batches(self, params: Any, split: str) -> Iterator[ScoredBatch]:
        """Yield every batch of a split, whole on every process, with the scores of its tokens."""
        stride, partitioner = self.config.evaluate.stride, self._partitioner
        plan, _ = self.data.evaluation(split, stride)
        batches = self.data.eval_batches(
            split, partitioner.rows_multiple, partitioner.all_rows, stride
        )
        for number, batch in enumerate(batches):
            self._before_batch()
            start, stop = partitioner.local_rows(len(batch.targets_BT))
            local = jax.tree.map(lambda a_BT, i=start, j=stop: a_BT[i:j], batch)
            scores = self._score(params, partitioner.put(local))
            nll_BT, predicted_BT = map(to_host, scores)
            yield ScoredBatch(plan.step(number), batch, nll_BT, predicted_BT)

    def translate(
        self, params: Any, texts: Sequence[str], seed: int | None = None, first: int = 0
    ) -> list[str]:
        """Return one line for each text, in order; '' for an empty one.

        A line feed that the model writes becomes a space: line n translates text n.

        Args:
            params: of the model.
            texts: sentences to translate.
            seed: of decoding by sampling; by default `train.seed`.
            first: the number of the first text in the input that they are a part of, from 0; it
                decides what sampling draws, so that the parts of an input are sampled as a whole.
        """
        hypotheses, partitioner = [''] * len(texts), self._partitioner
        lengths = self.data.batching.row_lengths()
        # Beams multiply the rows. As many tokens as a batch of evaluation has keep the matrices of
        # a step large and its caches small.
        tokens = self.config.evaluate.batch_tokens
        key = jax.random.PRNGKey(self.config.train.seed if seed is None else seed)
        batches = source_batches(self.data.tokenizer, texts, lengths, tokens, self.log, first)
        for indices, *source in batches:
            self._before_batch()
            rows = np.full(len(source[0]), first + len(texts), np.int32)
            rows[: len(indices)] = first + indices
            placed = [partitioner.put_whole(a) for a in source]
            tokens_BT, _ = self._decode(params, *placed, key, partitioner.put_whole(rows))
            ids_BT = to_host(tokens_BT)[: len(indices)]
            decoded = self.data.tokenizer.decode(ids_BT.tolist())
            for index, text in zip(indices, decoded, strict=True):
                hypotheses[index] = one_line(text) if texts[int(index)].strip() else ''
        return hypotheses

    def _bleu_tokenizer(self, references: Sequence[str]) -> str:
        """Choose the tokenizer of BLEU; one that the configuration does not name is logged."""
        if self.data.task.text_is_tokenized:
            return 'none'
        asked, target = self.config.evaluate.bleu_tokenize, self.config.data.target
        found = bleu_tokenizer(asked, target, references)
        if found != asked:
            self.log(
                f'BLEU: evaluate.bleu_tokenize={asked!r} finds no words in data.target={target!r}, '
                f'which is written without spaces: {found!r} takes its place, as the signature says'
            )
        return found

    def _likelihood(self, totals: TokenTotals, split: str) -> Scores:
        if not totals.weight:
            raise DataError(f'the {split} split has no token that counts: all are in the prefix')
        loss = totals.nll / totals.weight
        scores = {
            'loss': loss,
            'accuracy': totals.correct / totals.weight,
            'tokens': totals.weight,
        }
        if self.config.evaluate.stride:
            scores['stride'] = self.config.evaluate.stride
        if not self.data.task.predicts_natural_text:
            return scores | {'perplexity': perplexity(loss)}
        size = counted_text_size(self.data, split, self.config.evaluate.stride)
        return scores | perplexities(totals.nll, totals.weight, size)


def one_line(text: str) -> str:
    """Write a text in one line: line feeds and carriage returns become spaces."""
    return text.replace('\r', ' ').replace('\n', ' ')
