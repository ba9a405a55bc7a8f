"""A row of an ablation: its seeds are trained, scored and measured, each into a result.json in
its workdir.
"""

import contextlib
import dataclasses
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

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.experiment import STEP_TIME, Metric, evaluations, lengths_of
from transformer_jax.ablation.plan import Trial
from transformer_jax.ablation.results import BY_METRIC, FAILURE, RESULT, SENTENCES, is_score
from transformer_jax.data.files import decode_lines
from transformer_jax.errors import Busy, ConfigError, Stopped, UserError, WorkdirError
from transformer_jax.evaluation import by_length as lengths
from transformer_jax.evaluation.evaluator import Trained
from transformer_jax.host_memory import exhausted
from transformer_jax.profiling import measure
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.files import absolute_path, wrap_os_errors, write_text
from transformer_jax.storage.metrics_writer import encode_non_finite
from transformer_jax.storage.provenance import describe_run
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups as replicas
from transformer_jax.training.seed_groups import Group
from transformer_jax.training.train import train, train_group
from transformer_jax.training.training_run import Record


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a run has no result. The error itself would keep the frames that it came through, and
    their arrays, alive.
    """

    message: str  # for a person: of an error that is no user's, its kind too
    exit_code: int = 1
    busy: bool = False  # another process works on it
    traceback: str = ''  # of an error that is no user's

    @classmethod
    def of(cls, error: Exception, remedy: str = '') -> 'Failure':
        """That of an error; `remedy`: what to try if it is no user's."""
        if isinstance(error, UserError):
            return cls(str(error), error.exit_code, isinstance(error, Busy))
        told = exhausted(error)
        message = '; '.join(filter(None, (told or f'{type(error).__name__}: {error}', remedy)))
        return cls(
            message,
            ConfigError.exit_code if told else 1,
            traceback=''.join(traceback.format_exception(error)),
        )

    def write(self, run: Trial) -> None:
        """Writes the run's failure.json, where that can be written."""
        content = {'error': self.message} | (
            {'traceback': self.traceback} if self.traceback else {}
        )
        with contextlib.suppress(OSError):  # The failure is reported all the same.
            run.workdir.mkdir(parents=True, exist_ok=True)
            write_text(run.workdir / FAILURE, json.dumps(content, indent=1) + '\n')


Ended = tuple[Trial, Failure | None]


def train_seeds(
    runs: Sequence[Trial], most: int, log: Callable[[Sequence[Trial], str], None]
) -> Iterator[Ended]:
    """Trains the runs of one row; yields each at its end, once, with the failure that ended it.

    Runs whose batches have one shape are trained side by side, see `replicas`. What has a
    checkpoint goes on as it was begun: a group with all of its runs, which are all yielded, also
    those that were not asked for; a run alone, alone.

    Args:
        runs: of the row. One that has ended is not opened for training.
        most: how many may share a program; 0: all.
        log: receives remarks, and of which runs they are.

    Raises:
        Stopped: after SIGINT or SIGTERM, the state of what was being trained is saved.
    """
    jobs, fresh, told = {}, [], set()
    for run in runs:
        try:
            record = _ended(run)
            begun = None if record else _begun(run)
        except Exception as error:  # The others go on, whatever became of this one.
            told.add(run)
            yield run, Failure.of(error)
            continue
        if record:
            told.add(run)
            yield run, _failure(record)
        elif begun:
            members, group = begun
            jobs[members] = group
        else:
            fresh.append(run)
    together = (most or len(fresh)) if fresh and replicas.can_share(fresh[0].config) else 1
    for first in range(0, len(fresh), together):
        members = tuple(fresh[first : first + together])
        jobs[members] = _new_group(members) if len(members) > 1 else None
    for members, group in jobs.items():
        for run, failure in _train(members, group, functools.partial(log, members)):
            if run not in told:
                told.add(run)
                yield run, failure


def _begun(run: Trial) -> tuple[tuple[Trial, ...], Group | None] | None:
    """The runs that a run goes on with, and their group (None: it goes on alone); None of one that
    is not begun.
    """
    group = replicas.group_of(Workdir(run.workdir))
    if group and not replicas.dissolved(group):
        members = _members(run, group)
        # Of a group that is done a run lacks its replica.json where its folder was deleted, to have
        # it done again.
        waiting = any(
            Workdir(each.workdir).replica is not None and not _ended(each) for each in members
        )
        return (members, group) if waiting else ((run,), None)
    workdir = Workdir(run.workdir)
    return (
        ((run,), None)
        if workdir.checkpoints_path.exists() or workdir.metrics_path.exists()
        else None
    )


def _members(run: Trial, group: Group) -> tuple[Trial, ...]:
    """The runs of the group of one of them."""
    names = [epath.Path(folder).name for folder in group.folders]
    members = tuple(run.beside(int(name)) for name in names if name.isdecimal())
    if tuple(absolute_path(each.workdir) for each in members) != group.members:
        raise WorkdirError(
            f'{group.path / replicas.GROUP} lists {", ".join(group.folders)}, which are not all seeds '
            f'of {run.setting.folder}: restore it'
        )
    return members


def _new_group(members: Sequence[Trial]) -> Group:
    seeds = [run.seed for run in members]
    return Group(
        members[0].workdir.parent / replicas.group_name(seeds),
        tuple(f'../{seed}' for seed in seeds),
    )


def _ended(run: Trial) -> Record | None:
    """What is remembered of a run that needs no more training; None of others, and of another
    configuration's.
    """
    workdir = Workdir(run.workdir)
    step, record = replicas.standing(workdir)
    if not step or (step < run.config.train.steps and record.live):
        return None
    there, here = map(config_lib.flatten, (workdir.read_config(), run.config))
    return None if results.differences(there, here) else record


def _train(
    members: Sequence[Trial], group: Group | None, log: Callable[[str], None]
) -> list[Ended]:
    """Trains the runs of a group, or one alone."""
    try:
        if group is None:
            train(members[0].config, members[0].workdir, log)
            return [(members[0], None)]
        records = train_group([run.config for run in members], group.path, log, group.folders)
    except Stopped:
        raise
    except Exception as error:  # The others go on, whatever became of these.
        failure = Failure.of(error, _remedy(group) if group else '')
        return [(run, failure) for run in members]
    return [(run, _failure(record)) for run, record in zip(members, records, strict=True)]


def _remedy(group: Group) -> str:
    fewer = '--seeds_per_program=N trains fewer seeds in one program'
    return f'{fewer}, once {group.path} and its runs are deleted' if group.begun else fewer


def _failure(record: Record) -> Failure | None:
    return Failure.of(record.error) if record.failed else None


def score(run: Trial, metrics: Sequence[Metric], log: Callable[[str], None]) -> None:
    """Measures a trained run, scores it by the metrics that it lacks, and writes its result.json.

    Raises:
        UserError: it cannot be scored.
    """
    costs = _costs(
        run, anew=any(metric.timed for metric in metrics)
    )  # First: a failure here loses no evaluation.
    path, (earlier, sentences) = run.workdir / RESULT, _earlier(run)
    scores, examples, bins, steps = (earlier[key] for key in BY_METRIC)
    for key, members in evaluations(metrics).items():
        checkpoint, split, wanted = members[0].checkpoint, members[0].split, lengths_of(members)
        lacking = [
            metric
            for metric in members
            if not is_score(scores.get(str(metric)))
            or not steps.get(str(metric))
            or (metric.length and bins.get(key) != wanted)
        ]
        if not lacking:
            continue
        trained = Trained(run.workdir, checkpoint, log, {}, (split,))
        scores |= _scores(trained, split, lacking, wanted)
        names = [metric.name for metric in lacking if not metric.length]
        sentences |= {
            f'{split} {name}': found
            for name in names
            if (found := _sentences(trained, split, name)) is not None
        }
        examples |= {
            f'{split} {name}': _samples(trained, split)
            for name in names
            if name in ('bleu', 'chrf')
        }
        bins |= {key: wanted} if wanted else {}
        steps |= {str(metric): list(trained.steps) for metric in lacking}
    first = next((str(metric) for metric in metrics if not metric.timed), None)
    scores |= {str(metric): costs[STEP_TIME] for metric in metrics if metric.timed}
    with wrap_os_errors(path):
        # First: a result that is there is whole.
        write_text(run.workdir / SENTENCES, json.dumps(sentences) + '\n')
        write_text(
            path,
            json.dumps(
                encode_non_finite(
                    {
                        'scores': scores,
                        'examples': examples,
                        'lengths': bins,
                        'checkpoints': steps,
                        'seed': run.seed,
                        'step': steps[first][0] if first else costs['steps'],
                        **costs,
                        **_origin(),
                    }
                ),
                indent=1,
            )
            + '\n',
        )
        (run.workdir / FAILURE).unlink(missing_ok=True)


def _scores(
    trained: Trained, split: str, metrics: Sequence[Metric], wanted: Sequence[int]
) -> dict[str, float]:
    whole = [metric for metric in metrics if not metric.length]
    found = trained.evaluate(split) if whole else {}
    by_length = lengths.by_length(trained, split, wanted) if len(whole) < len(metrics) else []
    rows = {row['length']: row for row in by_length}
    empty = [length for length in wanted if by_length and length not in rows]
    if empty:
        raise ConfigError(
            f'the {split} split has no examples of length {", ".join(map(str, empty))}'
        )
    return {
        str(metric): (rows[metric.length] if metric.length else found)[metric.name]
        for metric in metrics
    }


def _samples(trained: Trained, split: str) -> str:
    return f'samples/{split}-{trained.choice.replace(":", "")}.txt'


def _sentences(trained: Trained, split: str, name: str) -> list[list[int]] | None:
    """What a score is made of, sentence by sentence, in the order of the split; None where it is no
    sum of sentences.

    Of BLEU: n-grams found, of 1 to 4 words; n-grams there; words of the hypothesis and of
    the reference.
    """
    data, kind = trained.data, trained.config.model.kind
    if data.form == 'translation' and name in ('bleu', 'exact_match'):
        hypotheses = decode_lines(
            (trained.workdir.path / _samples(trained, split)).read_bytes(), 'samples'
        )
        references = data.text(split).target
        if len(hypotheses) != len(
            references
        ):  # A model may write line feeds, which no file of lines can hold.
            return None
        pairs = list(zip(hypotheses, references, strict=True))
        if name == 'exact_match':
            return [[int(hypothesis == reference)] for hypothesis, reference in pairs]
        bleu = BLEU(
            tokenize='none' if data.task.drawn else trained.config.evaluate.bleu_tokenize,
            force=True,
        )
        found = [bleu.corpus_score([hypothesis], [[reference]]) for hypothesis, reference in pairs]
        return [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]
    if (name == 'accuracy' and kind == 'classifier') or (name == 'exact_match' and data.task.drawn):
        return [[int(right)] for right in _right(trained, split)]
    return None


def _right(trained: Trained, split: str) -> np.ndarray:
    """Which examples of a split have all their counted tokens right, teacher-forced, whatever rows
    they stand in.
    """
    plan, examples = trained.data.evaluation(split)
    right = np.zeros(len(examples.lengths), bool)
    for number, (batch, predicted_BT) in enumerate(
        trained.evaluator.predictions(trained.params, split)
    ):
        step = plan.step(number)
        segment = np.arange(len(step.row)) - np.searchsorted(step.row, step.row) + 1
        wrong_BT = (predicted_BT != batch.targets_BT) & (batch.weights_BT > 0)
        mine_ET = batch.segments_BT[step.row] == segment[:, None]
        right[step.examples] = ~(wrong_BT[step.row] & mine_ET).any(1)
    return right


_tried: dict[ExperimentConfig, tuple[measure.Size, measure.Trial]] = {}  # by the config of a row


def _costs(run: Trial, anew: bool) -> dict[str, Any]:
    """Those of a run alone, tried out once for all seeds of a row or `anew`; of its time in all
    what it really took.
    """
    config, workdir = run.setting.config, Workdir(run.workdir)
    if anew or config not in _tried:
        components = config_lib.resolve(config)
        _tried[config] = measure.size(components), measure.trial(components, workdir.tokenizer_path)
    size, trial = _tried[config]
    together = 1 if workdir.replica is None else len(replicas.group_of(workdir).folders)
    return {
        'params': size.params,
        'non_embedding_params': size.non_embedding_params,
        'flops': size.flops,
        'memory_bytes': trial.memory_bytes,
        STEP_TIME: trial.step_seconds,
        'steps': config.train.steps,
        'wall_seconds': measure.logged(workdir.metrics_path),
        'side_by_side': together,
    }


def _origin() -> dict[str, Any]:
    facts = describe_run()
    machine = {'devices': facts['devices'], 'cpus': os.cpu_count(), 'versions': facts['versions']}
    return {'machine': machine, 'commit': facts['commit'], 'date': time.strftime('%Y-%m-%d')}


def _earlier(run: Trial) -> tuple[dict[str, dict], dict[str, Any]]:
    """What was scored before, and of what sentences; nothing of what is damaged, or
    another seed's.
    """
    result, sentences = _read(run.workdir / RESULT), _read(run.workdir / SENTENCES)
    if result.get('seed') != run.seed or not all(
        isinstance(result.get(key), dict) for key in BY_METRIC
    ):
        return {key: {} for key in BY_METRIC}, {}
    return result, sentences


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
