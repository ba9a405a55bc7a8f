"""The loop of training for a group of seeds in one program."""

from collections.abc import Sequence
from typing import Any

import jax

from transformer_jax import config as config_lib
from transformer_jax.config import Components
from transformer_jax.efficiency.profile import Profiler
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.seed_group import MAY_DIFFER
from transformer_jax.training.batch_iterator import BatchIterator
from transformer_jax.training.programs import SeedGroupProgram
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.trainer import Log, Trainer, Values
from transformer_jax.training.training_run import TrainingRun


class SeedGroupTrainer(Trainer):
    """Several runs in progress in one program; one that ends early stands still from there on."""

    def __init__(
        self,
        components: Components,
        runs: Sequence[TrainingRun],
        program: SeedGroupProgram,
        checkpoints: Checkpoints,
        signals: StopSignals,
        log: Log,
        profiler: Profiler,
    ):
        super().__init__(components, runs[0], program.single, checkpoints, signals, log, profiler)
        self.runs, self.program = list(runs), program

    def params_of(self, run: TrainingRun) -> Any:
        return self.program.params_of(self.state.eval_params, self.runs.index(run))

    def _make_iterator(self) -> BatchIterator:
        first, *others = (run.data for run in self.runs)
        rows = self.program.partitioner.local_rows, self.program.rows_multiple
        return first.stacked_iterator(others, *rows)

    def _take_step(self, placed: Any) -> dict[str, jax.Array]:
        live = self.program.place_live([run.record.live for run in self.runs])
        self.state, metrics = self.program.train_step(self.state, placed, live)
        return metrics

    def _values(self, metrics: dict[str, Any]) -> list[Values]:
        return [
            {name: value[index].item() for name, value in metrics.items()}
            for index in range(len(self.runs))
        ]

    def _read_records(self, meta: dict[str, Any]) -> list[dict[str, Any]]:
        return meta['records']

    def _write_records(self) -> dict[str, Any]:
        flat = [config_lib.flatten(run.config) for run in self.runs]
        members = [
            {'folder': run.workdir.path.name, 'values': {key: own[key] for key in MAY_DIFFER}}
            for run, own in zip(self.runs, flat, strict=True)
        ]
        records = [run.record.as_json() for run in self.runs]
        return {'records': records, 'members': members, 'best': None}
