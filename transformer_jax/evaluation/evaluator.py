"""Scores of a model on a split: loss, perplexity, translations and their metrics."""

import copy
import dataclasses
import functools
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.attention.engines import is_available
from transformer_jax.batch import Batch
from transformer_jax.data import Data, load_data, source_batches
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.evaluation.metrics import (
    classification_metrics,
    perplexities,
    perplexity,
    translation_metrics,
    wilson_interval,
)
from transformer_jax.losses.cross_entropy import TokenSums
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import MODELS, abstract_params, build_model
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import ExperimentConfig, ParallelConfig
from transformer_jax.storage.files import wrap_os_errors, write_text
from transformer_jax.storage.selection import select_steps
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.seed_groups import reader

Log = Callable[[str], None]


def predict(model: nn.Module, params: dict, batch: Batch) -> jax.Array:
    """Return the most likely token at each target place, given the true ones before it.

    Returns:
        int32 predicted_BT.
    """
    x_BTD = model.apply({'params': params}, batch, method='features')
    return model.apply({'params': params}, x_BTD, method='logits').argmax(-1).astype(jnp.int32)


class Evaluator:
    """Evaluates parameters against an experiment's data; compiled functions are kept
    between calls.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: nn.Module,
        data: Data,
        partitioner: Partitioner,
        log: Log,
    ):
        self.config, self.data, self.log = config, data, log
        self.model, self.partitioner = model, partitioner
        self._decoder = make_decoder(model, config.decode, data.tokenizer.vocab_size)
        params = partitioner.shardings(abstract_params(model))
        placed = params, partitioner.batch_sharding
        self._eval_step = partitioner.compile(
            lambda params, batch: loss_sums(model, params, batch)[0],
            in_shardings=placed,
            out_shardings=partitioner.replicated,
        )
        self._predict = partitioner.compile(
            functools.partial(predict, model),
            in_shardings=placed,
            out_shardings=partitioner.batch_sharding,
        )

    def of(self, config: ExperimentConfig) -> 'Evaluator':
        """The same for another run of such a model; what is compiled is shared."""
        other = copy.copy(self)
        other.config = config
        return other

    def scores(
        self, params: Any, split: str, samples: epath.Path, max_examples: int = 0
    ) -> dict[str, Any]:
        """All metrics of a split, by what the task predicts.

        Translations: at most `max_examples` sentences are translated (0: all), into the
        file `samples`.
        """
        result = self.likelihood(params, split)
        if MODELS[self.config.model.kind].predicts_class:
            return result | self.classification(params, split)
        if self.data.form == 'translation':
            return result | self.translation(params, split, samples, max_examples)
        return result | self.matches(params, split) if self.data.task.drawn else result

    def likelihood(self, params: Any, split: str) -> dict[str, Any]:
        """Loss in nats per token that counts (EOS too; no label smoothing), accuracy, and what
        follows for the text.
        """
        total, stride = np.zeros(len(TokenSums._fields), np.float64), self.config.evaluate.stride
        for batch in self.data.eval_batches(
            split, self.partitioner.rows_multiple, self.partitioner.local_rows, stride
        ):
            total += np.array(
                jax.device_get(self._eval_step(params, self.partitioner.put(batch))),
                np.float64,
            )
        sums = TokenSums(*total.tolist())
        scores = {
            'loss': sums.nll / sums.weight,
            'accuracy': sums.correct / sums.weight,
            'tokens': sums.weight,
        }
        if stride:
            scores['stride'] = stride
        if self.data.form == 'classification' or self.data.task.drawn:
            return scores | {'perplexity': perplexity(scores['loss'])}
        return scores | perplexities(sums.nll, sums.weight, self.data.text(split).target)

    def classification(self, params: Any, split: str) -> dict[str, Any]:
        """Accuracy with its interval, and the confusion matrix."""
        predicted, labels = [], []
        for batch, predicted_B1 in self.predictions(params, split):
            real = batch.weights_BT > 0
            predicted += predicted_B1[real].tolist()
            labels += batch.targets_BT[real].tolist()
        return classification_metrics(predicted, labels, self.data.task.classes())

    def matches(self, params: Any, split: str) -> dict[str, Any]:
        """`exact_match`: the share of examples all of whose counted tokens are the most likely
        ones, in their place.
        """
        right = total = 0
        for batch, predicted_BT in self.predictions(params, split):
            wrong_BT = (predicted_BT != batch.targets_BT) & (batch.weights_BT > 0)
            for segment in range(1, batch.segments_BT.max(initial=0) + 1):
                mine_BT = batch.segments_BT == segment
                total += int(mine_BT.any(1).sum())
                right += int((mine_BT.any(1) & ~(wrong_BT & mine_BT).any(1)).sum())
        return {
            'exact_match': right / total,
            'exact_match_interval': wilson_interval(right, total),
            'examples': total,
        }

    def predictions(self, params: Any, split: str) -> Iterator[tuple[Batch, np.ndarray]]:
        """Every batch of a split whole, with the most likely token at each place."""

        def everything(rows):
            return 0, rows

        for batch in self.data.eval_batches(split, self.partitioner.rows_multiple, everything):
            start, stop = self.partitioner.local_rows(len(batch.targets_BT))
            mine = self.partitioner.put(
                jax.tree.map(lambda a_BT, i=start, j=stop: a_BT[i:j], batch)
            )
            yield batch, self.partitioner.gather(self._predict(params, mine))

    def translation(
        self, params: Any, split: str, samples: epath.Path, max_examples: int
    ) -> dict[str, Any]:
        """BLEU, chrF and exact match of what the decoder writes."""
        texts = self.data.text(split)
        count = min(max_examples or len(texts), len(texts))
        hypotheses = self.translate(params, texts.source[:count])
        if jax.process_index() == 0:
            with wrap_os_errors(samples):
                samples.parent.mkdir(parents=True, exist_ok=True)
                write_text(samples, ''.join(f'{line}\n' for line in hypotheses))
        data = self.config.data
        tokenize = 'none' if self.data.task.drawn else self.config.evaluate.bleu_tokenize
        return translation_metrics(
            hypotheses,
            texts.target[:count],
            source=data.source,
            target=data.target,
            tokenize=tokenize,
        )

    def translate(self, params: Any, texts: Sequence[str]) -> list[str]:
        """One line for each text, in order; '' for an empty one."""
        hypotheses = [''] * len(texts)
        lengths = self.data.batching.row_lengths()
        # A beam multiplies the rows; so many tokens keep the step's matrices large and its
        # caches small.
        tokens = self.config.evaluate.batch_tokens
        key = jax.random.PRNGKey(self.config.train.seed)
        batches = source_batches(self.data.tokenizer, texts, lengths, tokens, self.log)
        for indices, *source in batches:
            rows = np.full(len(source[0]), len(texts), np.int32)
            rows[: len(indices)] = indices
            source = [self.partitioner.put_whole(a) for a in source]
            with self.partitioner.context():
                tokens_BT, _ = self._decoder(params, *source, key, self.partitioner.put_whole(rows))
            found = self.data.tokenizer.decode(
                self.partitioner.gather(tokens_BT)[: len(indices)].tolist()
            )
            for index, text in zip(indices, found, strict=True):
                hypotheses[index] = text if texts[index].strip() else ''
        return hypotheses


class Trained:
    """A finished or running experiment, read from its workdir alone."""

    def __init__(
        self,
        path: epath.PathLike,
        checkpoint: str,
        log: Log,
        decode: Mapping[str, Any],
        splits: Sequence[str] = (),
    ):
        """
        Args:
            path: the workdir.
            checkpoint: 'best', 'last', 'avg:N' or a step; '' is the best where one is recorded,
                else the last.
            log: receives remarks.
            decode: keys of DecodeConfig that replace the run's own.
            splits: what to read at once.
        """
        self.workdir = Workdir(path)
        config = config_lib.from_dict(self.workdir.read_config())
        if not is_available(config.model.engine):
            log(
                f"model.engine={config.model.engine!r} is not on this machine: 'auto' takes its place"
            )
            config = config_lib.replace(
                config, model=dataclasses.replace(config.model, engine='auto')
            )
        self.config = config_lib.replace(
            config, parallel=ParallelConfig(), decode=dataclasses.replace(config.decode, **decode)
        )
        self.checkpoints = reader(self.workdir)
        choice = checkpoint or ('last' if self.checkpoints.best_step() is None else 'best')
        self.steps = select_steps(self.checkpoints, choice)
        components = config_lib.resolve(self.config)
        self.data = load_data(components.pipeline, self.workdir.tokenizer_path, log, splits)
        self.model = build_model(components.architecture)
        self.partitioner = Partitioner(self.config.parallel.mesh)
        meta = self.checkpoints.meta(self.steps[0])
        self.data.tokenizer.require(meta['tokenizer'], self.workdir.tokenizer_path)
        self.params = self.params_of(self.steps)
        self.evaluator = Evaluator(self.config, self.model, self.data, self.partitioner, log)
        log(f'checkpoint: {choice} (step {", ".join(map(str, self.steps))})')
        self.choice = choice

    def params_of(self, steps: Sequence[int]) -> Any:
        """The mean over `steps` of the parameters that evaluation uses."""
        tree = 'ema' if self.config.train.ema else 'params'
        return self.checkpoints.params(
            self.partitioner.abstract(abstract_params(self.model)), steps, tree
        )

    def evaluate(self, split: str) -> dict[str, Any]:
        """The scores of a split with all that tells what was scored; appended to
        evaluations.json.
        """
        start = time.time()
        result = {
            'task': self.config.data.task,
            'split': split,
            'checkpoint': self.choice,
            'steps': list(self.steps),
            'decode': config_lib.flatten(self.config.decode),
        }
        samples = self.workdir.samples_path / f'{split}-{self.choice.replace(":", "")}.txt'
        result |= self.evaluator.scores(self.params, split, samples)
        result['seconds'] = round(time.time() - start, 2)
        self.workdir.append_evaluation(result)
        return result


def table(result: Mapping[str, Any]) -> str:
    """A result of `Trained.evaluate` as a table for a terminal."""
    what = result['direction' if 'direction' in result else 'task']
    rows = rich.table.Table(
        title=f'{what} {result["split"]}, checkpoint {result["checkpoint"]} '
        f'(step {", ".join(map(str, result["steps"]))})'
    )
    rows.add_column('metric')
    rows.add_column('value', overflow='fold')
    for name, value in result.items():
        if name not in (
            'direction',
            'task',
            'split',
            'checkpoint',
            'steps',
            'decode',
            'classes',
            'confusion',
        ):
            rows.add_row(name, _readable(value))
    if 'direction' in result:
        rows.add_row(
            'decode', ', '.join(f'{key}={value}' for key, value in result['decode'].items())
        )
    tables = [rows]
    if 'confusion' in result:
        tables.append(
            rich.table.Table('class', *result['classes'], title='class (down), taken for (across)')
        )
        for name, counts in zip(result['classes'], result['confusion'], strict=True):
            tables[-1].add_row(name, *map(str, counts))
    text = io.StringIO()
    rich.console.Console(file=text, width=110).print(*tables)
    return text.getvalue().rstrip()


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return ' … '.join(map(_readable, value))
    if isinstance(value, float):
        return f'{value:,.0f}' if value.is_integer() and abs(value) > 1 else f'{value:.4f}'
    return str(value)
