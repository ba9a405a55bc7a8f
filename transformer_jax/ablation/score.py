"""A trial's result: its scores and costs, written to result.json and sentences.json."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation.field_types import is_finite
from transformer_jax.ablation.metric import Metric, evaluations, lengths_of
from transformer_jax.ablation.result_shapes import BY_METRIC, COSTS
from transformer_jax.ablation.results import FAILURE, RESULT, SENTENCES
from transformer_jax.ablation.trial import Trial
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.evaluation.by_length import by_length, sort_by_length
from transformer_jax.evaluation.metrics import METRICS, bleu_score
from transformer_jax.inference.gradient_norms import gradient_norms, norm_of
from transformer_jax.inference.probes import mean_probe, probe
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.profiling import measure
from transformer_jax.profiling.bench_decode import seconds_per_token
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.files import delete_file, write_text
from transformer_jax.storage.json_files import read_json_if_there
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.provenance import describe_run
from transformer_jax.storage.workdir import Workdir

Log = Callable[[str], None]
PROBED_BATCHES = 4  # of a split, from short rows to long ones, for probes and the gradient


@dataclasses.dataclass
class Findings:
    """What is known of a trial's quality so far.

    Attributes:
        scores: str(metric) -> value.
        examples: 'test bleu' -> the file of the translations, relative to the workdir.
        lengths: 'test best' -> the lengths that this evaluation was measured at.
        checkpoints: str(metric) -> the steps that were scored.
        selected: str(metric) -> its `checkpoint`; results of earlier versions have none.
        splits: 'test' -> the SHA-256 of the split when it was scored last.
        sentences: 'test bleu' -> what the score is made of, example by example; the content of
            sentences.json.
    """

    scores: dict[str, float]
    examples: dict[str, str]
    lengths: dict[str, list[int]]
    checkpoints: dict[str, list[int]]
    selected: dict[str, str]
    splits: dict[str, str]
    sentences: dict[str, list[list[int]]]

    def lack(self, metric: Metric, key: str, lengths: Sequence[int]) -> bool:
        """Say whether a metric must be measured, as one of the evaluation `key` at `lengths`."""
        label = str(metric)
        measured = is_finite(self.scores.get(label)) and bool(self.checkpoints.get(label))
        selected = self.selected.get(label, metric.checkpoint)
        if not measured or selected != metric.checkpoint:
            return True
        return bool(metric.length and self.lengths.get(key) != lengths)


def score(trial: Trial, metrics: Sequence[Metric], log: Log) -> None:
    """Measure a trained trial, score it by the metrics that it lacks, and write its result.

    Raises:
        UserError: the trial cannot be scored.
    """
    # Costs come first: a failure there loses no evaluation.
    anew = any(metric.timed and not metric.decodes for metric in metrics)
    costs = _costs(trial, anew) if trial.measured else _logged_costs(trial)
    times = _times(trial, metrics, costs)
    findings = _read_findings(trial)
    for key, members in evaluations(metrics).items():
        lengths = lengths_of(members)
        lacking = [metric for metric in members if findings.lack(metric, key, lengths)]
        if not lacking:
            continue
        first = members[0]
        trained = TrainedRun(trial.workdir, first.checkpoint, log, {}, (first.split,))
        forced = [metric for metric in lacking if metric.length and not metric.translated]
        probed = [metric for metric in lacking if metric.probed]
        whole = [metric for metric in lacking if metric not in (*forced, *probed)]
        _add_whole(findings, trained, whole, lengths)
        _add_by_length(findings, trained, forced, lengths)
        _add_probes(findings, trained, probed)
        if lengths:
            findings.lengths[key] = lengths
        findings.splits[first.split] = trained.fingerprint(first.split)
        for metric in lacking:
            findings.checkpoints[str(metric)] = list(trained.steps)
            findings.selected[str(metric)] = metric.checkpoint
    findings.scores |= times
    try:
        write_once(lambda: _write(trial, metrics, findings, costs))
    except WorkdirError:
        log(f'scores that could not be written: {to_json(findings.scores)}')
        raise


def _add_whole(
    findings: Findings, trained: TrainedRun, metrics: Sequence[Metric], lengths: list[int]
) -> None:
    """Evaluate a split once, and add the scores of some metrics of it.

    Those with a length are the BLEU of the sentences of that length.

    Raises:
        ConfigError: the split has no sentences of a length.
    """
    if not metrics:
        return
    split = metrics[0].split
    evaluation = trained.evaluate(split)
    for metric in metrics:
        label, value = str(metric), evaluation.scores[metric.name]
        sentences = evaluation.examples.get(metric.name)
        if metric.length and sentences:
            by_size = sort_by_length(trained.data, split, sentences, lengths)
            _require_lengths(by_size, split, lengths)
            sentences = by_size[metric.length]
            value = bleu_score(sentences)
        findings.scores[label] = value
        if sentences:
            findings.sentences[label] = sentences
        if METRICS[metric.name].from_hypotheses:
            findings.examples[label] = f'samples/{trained.samples_name(split)}'


def _add_by_length(
    findings: Findings, trained: TrainedRun, metrics: Sequence[Metric], lengths: list[int]
) -> None:
    """Measure a split at all `lengths`, and add the scores of some metrics of it.

    Raises:
        ConfigError: the split has no examples of a length.
    """
    if not metrics:
        return
    split = metrics[0].split
    found = by_length(trained.evaluator, trained.params, split, lengths)
    rows = {row['length']: row for row in found}
    _require_lengths(rows, split, lengths)
    for metric in metrics:
        findings.scores[str(metric)] = rows[metric.length][metric.name]


def _require_lengths(found: Mapping[int, Any], split: str, lengths: Sequence[int]) -> None:
    """Raise ConfigError where a split has no examples of some lengths."""
    empty = [str(length) for length in lengths if not found.get(length)]
    if empty:
        raise ConfigError(f'the {split} split has no examples of length {", ".join(empty)}')


def _add_probes(findings: Findings, trained: TrainedRun, metrics: Sequence[Metric]) -> None:
    """Add the scores of metrics that are measured on a few batches of a split.

    Raises:
        ConfigError: no head has a probe, as where every query may see one key alone.
    """
    heads, norms = None, None
    for metric in metrics:
        if metric.has_parts:
            norms = norms or gradient_norms(trained, metric.split, PROBED_BATCHES)
            found = norm_of(norms, metric.part)
        else:
            heads = heads or probe(trained, metric.split, PROBED_BATCHES)['checkpoints'][0]['sites']
            found = mean_probe(heads, metric.name)
        if found is None:
            raise ConfigError(f'{metric}: no head of the model has this number')
        findings.scores[str(metric)] = found


def _write(
    trial: Trial, metrics: Sequence[Metric], findings: Findings, costs: dict[str, Any]
) -> None:
    """Write sentences.json, then result.json, and delete an earlier failure.json."""
    first = next((str(metric) for metric in metrics if not metric.timed), None)
    result = {
        **{key: getattr(findings, key) for key in BY_METRIC},
        'seed': trial.seed,
        'step': findings.checkpoints[first][0] if first else costs['steps'],
        **costs,
        **_origin(),
    }
    path = trial.workdir / RESULT
    # Sentences come first: a result that is there is whole.
    write_text(trial.workdir / SENTENCES, to_json(findings.sentences) + '\n')
    write_text(path, to_json(result, indent=1) + '\n')
    delete_file(trial.workdir / FAILURE)


# By the config of a setting: its seeds cost the same.
_tried: dict[ExperimentConfig, tuple[measure.ModelSize, measure.StepMeasurement]] = {}


def _costs(trial: Trial, anew: bool) -> dict[str, Any]:
    """Measure what a trial costs.

    Size, memory and step time are those of a seed that is trained alone. They are measured once
    for all seeds of a setting, or `anew`. The time in all is what the trial really took.
    """
    config, workdir = trial.setting.config, Workdir(trial.workdir)
    if anew or config not in _tried:
        components = config_lib.resolve(config)
        measured = measure.measure_step(components, workdir.tokenizer_path)
        _tried[config] = measure.model_size(components), measured
    size, measured = _tried[config]
    group = workdir.seed_group
    return {
        'params': size.params,
        'non_embedding_params': size.non_embedding_params,
        'flops': size.flops,
        'state_bytes': size.state_bytes,
        'state_length': size.state_length,
        'memory_bytes': measured.memory_bytes,
        'step_seconds': measured.step_seconds,
        'step_spread': measured.step_spread,
        'steps': config.train.steps,
        'wall_seconds': measure.logged_seconds(workdir.metrics_path),
        'mfu': measure.logged_mfu(workdir.metrics_path),
        'goodput': measure.logged_goodput(workdir.times_path),
        'side_by_side': len(group.members) if group else 1,
        'mesh': dataclasses.asdict(config.parallel.mesh),
    }


def _times(trial: Trial, metrics: Sequence[Metric], costs: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of the metrics that are times; decoding is timed here."""
    times = {str(metric): costs['step_seconds'] for metric in metrics if metric.timed}
    if decoded := [str(metric) for metric in metrics if metric.decodes]:
        seconds = seconds_per_token(config_lib.resolve(trial.setting.config))
        times |= dict.fromkeys(decoded, seconds)
    return times


def _logged_costs(trial: Trial) -> dict[str, Any]:
    """Return what is known of a trial without measuring: how many steps and seconds it took."""
    seconds = measure.logged_seconds(Workdir(trial.workdir).metrics_path)
    known = {'steps': trial.setting.config.train.steps, 'wall_seconds': seconds}
    return dict.fromkeys(COSTS) | known


def _origin() -> dict[str, Any]:
    """Say on which machine, by which commit and when a result was made."""
    facts = describe_run()
    machine = {'devices': facts['devices'], 'cpus': os.cpu_count(), 'versions': facts['versions']}
    return {'machine': machine, 'commit': facts['commit'], 'date': time.strftime('%Y-%m-%d')}


def _read_findings(trial: Trial) -> Findings:
    """Read what was scored before; nothing where that is damaged or belongs to another seed."""
    result = {'selected': {}, 'splits': {}} | _read_object(trial.workdir / RESULT)
    sound = all(isinstance(result.get(key), dict) for key in BY_METRIC)
    if not sound or result.get('seed') != trial.seed:
        return Findings({}, {}, {}, {}, {}, {}, {})
    parts = {key: result[key] for key in BY_METRIC}
    return Findings(**parts, sentences=_read_object(trial.workdir / SENTENCES))


def _read_object(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object; return {} where there is none, or a damaged one."""
    try:
        return read_json_if_there(path, {}, 'delete it') or {}
    except WorkdirError:
        return {}
