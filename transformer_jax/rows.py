"""A row of an ablation: its seeds are trained, scored and measured, each into a result.json in its workdir."""

import contextlib
import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from sacrebleu.metrics import BLEU

from transformer_jax import lengths, measure, replicas
from transformer_jax.config import ExperimentConfig
from transformer_jax.data.files import decode_lines
from transformer_jax.errors import ConfigError, Diverged, Stopped, UserError
from transformer_jax.evaluate import Trained
from transformer_jax.experiment import STEP_TIME, Metric, evaluations, lengths_of
from transformer_jax.plan import Run
from transformer_jax.results import FAILURE, RESULT, SENTENCES
from transformer_jax.storage import reported, write_text
from transformer_jax.train import train_group
from transformer_jax.workdir import Workdir, describe_run, finite

Ended = tuple[Run, Exception | None]


def train_seeds(runs: Sequence[Run], most: int, log: Callable[[Sequence[Run], str], None]) -> Iterator[Ended]:
    """Trains the runs of one row; yields each at its end, with the error that ended it.

    Runs whose batches have one shape are trained side by side, see `replicas`. What was begun goes on as it was: a
    group with all of its runs, also those that are done or were not asked for; a run that was begun alone, alone.

    Args:
        runs: of the row. One that is trained is not trained any further.
        most: how many may share a program; 0: all.
        log: receives remarks, and of which runs they are.

    Raises:
        Stopped: after SIGINT or SIGTERM, the state of what was being trained is saved.
    """
    begun, alone, fresh = {}, [], []
    for run in runs:
        try:
            workdir = Workdir(run.workdir)
            group = replicas.group_of(workdir)
        except UserError as error:
            yield run, error
            continue
        if group:
            path, folders = group
            begun[path] = tuple(run.beside(int(epath.Path(folder).name)) for folder in folders)
        elif workdir.checkpoints_path.exists() or workdir.metrics_path.exists():
            alone.append((run,))
        else:
            fresh.append(run)
    fresh = [run for run in fresh if not any(run in members for members in begun.values())]
    most = (most or len(fresh)) if fresh and replicas.can_share(fresh[0].config) else 1
    together = [tuple(fresh[first:first + most]) for first in range(0, len(fresh), most)]
    for members in (*begun.values(), *alone, *together):
        ends = _train(members, functools.partial(log, members))
        yield from ((run, error) for run, error in ends if run in runs)


def _train(members: Sequence[Run], log: Callable[[str], None]) -> list[Ended]:
    """Trains runs that share a program, in a group named by their seeds; of one alone nothing but its workdir is."""
    seeds = [str(run.seed) for run in members]
    path = members[0].workdir.parent / '-'.join(seeds)
    try:
        records = train_group([run.config for run in members], path, log, [f'../{seed}' for seed in seeds])
    except Stopped:
        raise
    except Exception as error:  # The others go on, whatever became of these.
        return [(run, error) for run in members]
    return [(run, Diverged(record.failed) if record.failed else None)
            for run, record in zip(members, records, strict=True)]


def score(run: Run, metrics: Sequence[Metric], log: Callable[[str], None]) -> None:
    """Scores a trained run by the metrics that it lacks, measures it, and writes its result.json.

    Raises:
        UserError: it cannot be scored.
    """
    path = run.workdir / RESULT
    earlier, sentences = _read(path), _read(run.workdir / SENTENCES)
    scores, examples, bins, steps = (earlier.get(key, {}) for key in ('scores', 'examples', 'lengths', 'checkpoints'))
    for key, members in evaluations(metrics).items():
        checkpoint, split, wanted = members[0].checkpoint, members[0].split, lengths_of(members)
        lacking = [metric for metric in members if not isinstance(scores.get(str(metric)), int | float) or (
            metric.length and bins.get(key) != wanted)]
        if not lacking:
            continue
        trained = Trained(run.workdir, checkpoint, log, {}, (split,))
        scores |= _scores(trained, split, lacking, wanted)
        names = [metric.name for metric in lacking if not metric.length]
        sentences |= {f'{split} {name}': found for name in names
                      if (found := _sentences(trained, split, name)) is not None}
        examples |= {f'{split} {name}': _samples(trained, split) for name in names if name in ('bleu', 'chrf')}
        bins |= {key: wanted} if wanted else {}
        steps |= {str(metric): list(trained.steps) for metric in lacking}
    costs, first = _costs(run), next((str(metric) for metric in metrics if not metric.timed), None)
    scores |= {str(metric): costs[STEP_TIME] for metric in metrics if metric.timed}
    with reported(path):
        # First: a result that is there is whole.
        write_text(run.workdir / SENTENCES, json.dumps(sentences) + '\n')
        write_text(path, json.dumps(finite({
            'scores': scores, 'examples': examples, 'lengths': bins, 'checkpoints': steps, 'seed': run.seed,
            'step': steps[first][0] if first else costs['steps'], **costs, **_origin()}), indent=1) + '\n')
        (run.workdir / FAILURE).unlink(missing_ok=True)


def message(error: Exception) -> str:
    """One for a person: of an error that is no user's, its kind too."""
    return str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'


def fail(run: Run, error: Exception) -> None:
    """Writes why a run failed into its failure.json, where that can be written."""
    failure = {'error': message(error)}
    if not isinstance(error, UserError):
        failure['traceback'] = ''.join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # The failure is reported all the same.
        run.workdir.mkdir(parents=True, exist_ok=True)
        write_text(run.workdir / FAILURE, json.dumps(failure, indent=1) + '\n')


def _scores(trained: Trained, split: str, metrics: Sequence[Metric], wanted: Sequence[int]) -> dict[str, float]:
    whole = [metric for metric in metrics if not metric.length]
    found = trained.evaluate(split) if whole else {}
    by_length = lengths.by_length(trained, split, wanted) if len(whole) < len(metrics) else []
    rows = {row['length']: row for row in by_length}
    empty = [length for length in wanted if by_length and length not in rows]
    if empty:
        raise ConfigError(f'the {split} split has no examples of length {", ".join(map(str, empty))}')
    return {str(metric): (rows[metric.length] if metric.length else found)[metric.name] for metric in metrics}


def _samples(trained: Trained, split: str) -> str:
    return f'samples/{split}-{trained.choice.replace(":", "")}.txt'


def _sentences(trained: Trained, split: str, name: str) -> list[list[int]] | None:
    """What a score is made of, sentence by sentence, in the order of the split; None where it is no sum of sentences.

    Of BLEU: n-grams found, of 1 to 4 words; n-grams there; words of the hypothesis and of the reference.
    """
    data, kind = trained.data, trained.config.model.kind
    if data.form == 'translation' and name in ('bleu', 'exact_match'):
        hypotheses = decode_lines((trained.workdir.path / _samples(trained, split)).read_bytes(), 'samples')
        references = data.text(split).target
        if len(hypotheses) != len(references):  # A model may write line feeds, which no file of lines can hold.
            return None
        pairs = list(zip(hypotheses, references, strict=True))
        if name == 'exact_match':
            return [[int(hypothesis == reference)] for hypothesis, reference in pairs]
        bleu = BLEU(tokenize='none' if data.task.drawn else trained.config.evaluate.bleu_tokenize, force=True)
        found = [bleu.corpus_score([hypothesis], [[reference]]) for hypothesis, reference in pairs]
        return [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]
    if (name == 'accuracy' and kind == 'classifier') or (name == 'exact_match' and data.task.drawn):
        return [[int(right)] for right in _right(trained, split)]
    return None


def _right(trained: Trained, split: str) -> np.ndarray:
    """Which examples of a split have all their counted tokens right, teacher-forced, whatever rows they stand in."""
    plan, examples = trained.data.evaluation(split)
    right = np.zeros(len(examples.lengths), bool)
    for number, (batch, predicted_BT) in enumerate(trained.evaluator.predictions(trained.params, split)):
        step = plan.step(number)
        segment = np.arange(len(step.row)) - np.searchsorted(step.row, step.row) + 1
        wrong_BT = (predicted_BT != batch.targets_BT) & (batch.weights_BT > 0)
        mine_ET = batch.segments_BT[step.row] == segment[:, None]
        right[step.examples] = ~(wrong_BT[step.row] & mine_ET).any(1)
    return right


@functools.lru_cache(maxsize=4)
def _compiled_costs(config: ExperimentConfig) -> dict[str, Any]:
    found = measure.size(config)
    return {'params': found.params, 'non_embedding_params': found.non_embedding_params, 'flops': found.flops,
            'memory_bytes': measure.memory_bytes(config)}


@functools.lru_cache(maxsize=4)
def _step_seconds_alone(config: ExperimentConfig) -> float:
    return measure.trial(config).step_seconds


def _costs(run: Run) -> dict[str, Any]:
    """Those of the run as if it had been trained alone, but for the time in all: of a group's it is a share."""
    group = replicas.group_of(Workdir(run.workdir))
    together = len(group[1]) if group else 1
    taken, spent = measure.logged(run.workdir / 'metrics.jsonl', together)
    return {**_compiled_costs(run.row.config), 'wall_seconds': spent, 'steps': run.row.config.train.steps,
            STEP_TIME: _step_seconds_alone(run.row.config) if group else taken, 'side_by_side': together}


def _origin() -> dict[str, Any]:
    facts = describe_run()
    machine = {'devices': facts['devices'], 'cpus': os.cpu_count(), 'versions': facts['versions']}
    return {'machine': machine, 'commit': facts['commit'], 'date': time.strftime('%Y-%m-%d')}


def _read(path: epath.Path) -> dict[str, Any]:
    """What was scored before; what is damaged is scored again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
