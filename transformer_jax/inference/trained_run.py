"""A finished or running experiment, read from its workdir: its model, data and parameters."""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.attention.engines import is_available
from transformer_jax.data import load_data
from transformer_jax.data.fingerprints import require_same_splits, split_fingerprint
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.evaluation.evaluator import Evaluation, Evaluator
from transformer_jax.inference.decode_keys import with_method
from transformer_jax.models import abstract_params, build_model
from transformer_jax.partitioning.mesh import mesh_sizes, parse_mesh
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.partitioning.rules import partition_specs
from transformer_jax.schema import ExperimentConfig, ParallelConfig
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.seed_checkpoints import open_checkpoints
from transformer_jax.storage.selection import select_steps
from transformer_jax.storage.workdir import Workdir

Log = Callable[[str], None]


class TrainedRun:
    """An experiment read from its workdir alone, to evaluate, decode and look into.

    Attributes:
        workdir: of the run.
        config: the run's own, but with the decoding that was asked for, a mesh of the devices
            here, and an engine that this machine has.
        checkpoints: of the run, read-only.
        choice: the checkpoint that was asked for: 'best', 'last', 'avg:N' or a step.
        steps: the steps that it stands for; several are averaged.
        data: of the experiment, with its tokenizer.
        model: of the parameters.
        partitioner: places arrays and compiles functions.
        params: the parameters that evaluation uses, unboxed and cut over the mesh; no device
            ever holds more than its part.
        evaluator: of the model on the data.
        log: receives remarks.
    """

    def __init__(
        self,
        path: epath.PathLike,
        checkpoint: str,
        log: Log,
        decode: Mapping[str, Any],
        splits: Sequence[str] = (),
        source_dir: str = '',
        allow_changed_data: bool = False,
        mesh: str = '',
    ):
        """Read the configuration, the data and one checkpoint of a workdir.

        In a run of several processes every process must call this.

        Args:
            path: the workdir.
            checkpoint: 'best', 'last', 'avg:N' or a step; '' is the best where one is recorded,
                else the last.
            log: receives remarks.
            decode: keys of DecodeConfig that replace the run's own; a key that only one method
                reads, such as 'beam', selects that method.
            splits: of the data, read and checked at once; others are read when asked for.
            source_dir: where the data lies now; '' is `data.source_dir` of training.
            allow_changed_data: only log that a split is another than that of training.
            mesh: how the devices here are arranged, as 'fsdp=8'; '' is the run's `parallel.mesh`
                where it fits them, else all on the axis 'data'.

        Raises:
            ConfigError: the workdir holds no run, or no such checkpoint, a key has no effect, or
                the devices here do not fill the mesh.
            WorkdirError: a file of the workdir is damaged.
            DataError: the data cannot be read, or is not that of training.
        """
        self.workdir, self.log = Workdir(path), log
        stored = config_lib.from_stored(self.workdir.read_config(), self.workdir.config_path)
        if source_dir:
            moved = dataclasses.replace(stored.data, source_dir=source_dir)
            stored = config_lib.replace(stored, data=moved)
        self.config = _usable_here(stored, decode, mesh, log)
        self.checkpoints = open_checkpoints(self.workdir)
        self.choice = checkpoint or ('last' if self.checkpoints.best_step() is None else 'best')
        self.steps = select_steps(self.checkpoints, self.choice)
        components = config_lib.resolve(self.config)
        self.data = load_data(components.pipeline, self.workdir.tokenizer_path, log, splits)
        self.model = build_model(components.architecture)
        self.partitioner = Partitioner(self.config.parallel.mesh, components.rules)
        meta = self.checkpoints.meta(self.steps[0])
        self.data.tokenizer.require(meta['tokenizer'], self.workdir.tokenizer_path)
        self._stored_splits, self._allows_changes = meta.get('splits', {}), allow_changed_data
        self._fingerprints: dict[str, str] = {}  # of the splits as they are read now
        self.require_same_data(splits)
        self.params = self.params_at(self.steps)
        self.evaluator = Evaluator(components, self.data, self.partitioner, log)
        log(f'checkpoint: {self.choice} (step {", ".join(map(str, self.steps))})')

    def params_at(self, steps: Sequence[int]) -> Any:
        """Read the parameters that evaluation uses, averaged over some steps.

        Where `train.ema` is set, these are the moving averages.
        """
        tree = 'ema' if self.config.train.ema else 'params'
        abstract = self.partitioner.abstract(abstract_params(self.model))
        return self.checkpoints.params(abstract, steps, tree)

    def with_decoding(self, keys: Mapping[str, Any]) -> 'TrainedRun':
        """Make the same run with some keys of `decode` replaced, as `__init__`; the rest is shared.

        Raises:
            ConfigError: an unknown key, or a value that cannot be used.
        """
        values = config_lib.to_dict(self.config)
        values['decode'] |= with_method(keys)
        other = copy.copy(self)
        other.config = config_lib.from_dict(values)
        components = config_lib.resolve(other.config)
        other.evaluator = Evaluator(components, self.data, self.partitioner, self.log)
        return other

    def require_same_data(self, splits: Sequence[str]) -> None:
        """Raise DataError where a split that was read in training is another one now."""
        require_same_splits(self.data, self._stored_splits, splits, self._allows_changes, self.log)

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 of a split's examples as they are read now, see `fingerprints`."""
        if split not in self._fingerprints:
            self._fingerprints[split] = split_fingerprint(self.data, split)
        return self._fingerprints[split]

    def samples_name(self, split: str) -> str:
        """Name the file in the workdir's samples/ where `evaluate` writes translations."""
        return f'{split}-{self.choice.replace(":", "")}.txt'

    def measure(self, split: str) -> Evaluation:
        """Measure all metrics of a split; writes nothing, see `write_evaluation`.

        Args:
            split: 'validation' or 'test'.

        Returns:
            the evaluation. Its scores also say what was scored: task, split, its
            fingerprint, checkpoint, steps, decode and seconds.
        """
        start = time.time()
        self.require_same_data([split])
        origin = {
            'task': self.config.data.task,
            'split': split,
            'split_sha256': self.fingerprint(split),
            'checkpoint': self.choice,
            'steps': list(self.steps),
            'decode': config_lib.flatten(self.config.decode),
        }
        found = self.evaluator.evaluate(self.params, split)
        scores = origin | found.scores | {'seconds': round(time.time() - start, 2)}
        return dataclasses.replace(found, scores=scores)

    def evaluate(self, split: str) -> Evaluation:
        """Measure all metrics of a split, and write them to the workdir.

        Raises:
            WorkdirError: a file cannot be written; the log has the scores.
        """
        found = self.measure(split)
        try:
            self.write_evaluation(found)
        except WorkdirError:
            self.log(f'scores that could not be written: {to_json(found.scores)}')
            raise
        return found

    def write_evaluation(self, found: Evaluation) -> None:
        """Append the scores of `measure` to evaluations.json; write translations to samples/.

        Raises:
            WorkdirError: a file cannot be written.
        """
        name = self.samples_name(found.scores['split'])

        def write() -> None:
            self.workdir.append_evaluation(found.scores)
            found.write_samples(self.workdir.samples_path / name)

        write_once(write)


def _usable_here(
    config: ExperimentConfig, decode: Mapping[str, Any], mesh: str, log: Log
) -> ExperimentConfig:
    """Replace what belongs to the machine of training, and the decoding that was asked for."""
    engine = config.model.engine
    if not is_available(engine):
        log(f"model.engine={engine!r} is not on this machine: 'auto' takes its place")
        config = config_lib.replace(config, model=dataclasses.replace(config.model, engine='auto'))
    # A scan shortens the compilation of a training step; decoding has its layers apart.
    model = dataclasses.replace(config.model, scan_layers=False, remat='none')
    decoding = dataclasses.replace(config.decode, **with_method(decode))
    config = config_lib.replace(config, model=model, decode=decoding)
    return config_lib.replace(config, parallel=_layout_here(config, mesh, log))


def _layout_here(config: ExperimentConfig, mesh: str, log: Log) -> ParallelConfig:
    """Choose the mesh of the devices here: what was asked for, the run's own, or data alone."""
    rules = config.parallel.rules
    if mesh:
        return ParallelConfig(mesh=parse_mesh(mesh), rules=rules)
    own = ParallelConfig(mesh=config.parallel.mesh, rules=rules)
    components, devices = config_lib.resolve(config), jax.device_count()
    try:
        boxed = abstract_params(build_model(components.architecture))
        partition_specs(boxed, mesh_sizes(own.mesh, devices), components.rules)
    except ConfigError as error:
        if devices > 1:
            log(f'{error}: rows alone are cut over the {devices} devices here; --mesh= changes it')
        return ParallelConfig()
    return own
