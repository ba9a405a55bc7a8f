"""The trackers that `--trackers` names: their table and their adapters.

Where a tracker keeps its records, and whether it uses the network, is said to it as its own
documentation says, by the environment: `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI=…`, and so on.
Nothing here imports JAX: an adapter works in a process of its own, see `remote`.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from transformer_jax import spec
from transformer_jax.errors import ConfigError
from transformer_jax.storage.files import write_text
from transformer_jax.storage.tracker import Tracker

PROJECT = 'transformer_jax'


class RunName(NamedTuple):
    """How a run is called in a tracker.

    Attributes:
        run_id: of the workdir: the same for all starts of a run, and for no other run.
        name: for people.
        directory: where a tracker may write files that it has no other place for.
    """

    run_id: str
    name: str
    directory: str


class WandB:
    """Weights & Biases; `WANDB_PROJECT`, `WANDB_MODE`, `WANDB_DIR` and others are its own."""

    package = 'wandb'

    def __init__(self, run: RunName):
        wandb = importlib.import_module('wandb')
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            id=run.run_id,
            name=run.name,
            resume='allow',
            dir=os.environ.get('WANDB_DIR', run.directory),
        )
        # Its own step only counts up: a resumed run logs some steps a second time.
        self._run.define_metric('step', hidden=True)
        self._run.define_metric('*', step_metric='step')

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker.log_config."""
        self._run.config.update(config, allow_val_change=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker.log."""
        self._run.log({'step': step, **values})

    def log_artifact(self, path: str) -> None:
        """See Tracker.log_artifact."""
        self._run.save(path, base_path=os.path.dirname(path), policy='now')

    def finish(self) -> None:
        """See Tracker.finish."""
        self._run.finish()


class MLflow:
    """MLflow; `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are its own."""

    package = 'mlflow'

    def __init__(self, run: RunName):
        mlflow = importlib.import_module('mlflow')
        self._client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT))
        found = self._client.search_runs(
            [experiment.experiment_id], f"tags.`transformer_jax.run` = '{run.run_id}'"
        )
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status='RUNNING')
        else:
            tags = {'transformer_jax.run': run.run_id}
            made = self._client.create_run(experiment.experiment_id, tags=tags, run_name=run.name)
            self._id = made.info.run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker.log_config."""
        stored = self._client.get_run(self._id).data.params
        for key, value in config.items():
            if key not in stored:  # MLflow refuses to change a parameter.
                self._client.log_param(self._id, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker.log."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def log_artifact(self, path: str) -> None:
        """See Tracker.log_artifact."""
        self._client.log_artifact(self._id, path)

    def finish(self) -> None:
        """See Tracker.finish."""
        self._client.set_terminated(self._id)


class Aim:
    """Aim; its repository is the one of `AIM_REPO`, by default `.aim` in the current folder.

    Records are shown once Aim has indexed them: `aim up` does, or `aim storage reindex`.
    """

    package = 'aim'

    def __init__(self, run: RunName):
        self._aim = importlib.import_module('aim')
        # Aim chooses the hash by which a later start finds the record again.
        stored = epath.Path(run.directory) / 'aim.txt'
        self._run = self._aim.Run(
            run_hash=stored.read_text() if stored.exists() else None,
            repo=os.environ.get('AIM_REPO'),
            experiment=PROJECT,
            system_tracking_interval=None,
        )
        write_text(stored, self._run.hash)
        self._run.name = run.name
        self._run['run'] = run.run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker.log_config."""
        self._run['config'] = dict(config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker.log."""
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def log_artifact(self, path: str) -> None:
        """See Tracker.log_artifact."""
        name = os.path.basename(path)
        if name.endswith('.png'):
            self._run.track(self._aim.Image(path), name=name)

    def finish(self) -> None:
        """See Tracker.finish."""
        self._run.close()


class Trackio:
    """Trackio; `TRACKIO_DIR` says where its database is."""

    package = 'trackio'

    def __init__(self, run: RunName):
        self._trackio = importlib.import_module('trackio')
        self._name = f'{run.name}-{run.run_id[:8]}'

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker.log_config."""
        self._trackio.init(
            project=PROJECT, name=self._name, config=dict(config), resume='allow', embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker.log."""
        self._trackio.log(dict(values), step=step)

    def log_artifact(self, path: str) -> None:
        """See Tracker.log_artifact."""
        if path.endswith('.png'):
            self._trackio.log({os.path.basename(path): self._trackio.Image(path)})

    def finish(self) -> None:
        """See Tracker.finish."""
        self._trackio.finish()


TRACKERS: dict[str, type[Any]] = {
    'wandb': WandB,
    'mlflow': MLflow,
    'aim': Aim,
    'trackio': Trackio,
}


def require_tracker(name: str) -> None:
    """Check that `--trackers` names a tracker that is installed.

    Args:
        name: a row of TRACKERS, or a class of another package by its module, 'my_trackers.Mine'.

    Raises:
        ConfigError: it does not; the message says how to get it.
    """
    if name in TRACKERS:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f'--trackers={name} needs the package {package}: pip install '
                f"'transformer_jax[{name}]'"
            )
        return
    module, _, cls = name.rpartition('.')
    if not module or not cls:
        raise ConfigError(f'--trackers={name}: no such tracker; {spec.nearest(name, TRACKERS)}')
    _import_from_here()
    found = None
    with contextlib.suppress(ModuleNotFoundError):
        found = importlib.util.find_spec(module)
    if found is None:
        raise ConfigError(
            f'--trackers={name} names the module {module}, which is not found: install it, or put '
            'its folder into PYTHONPATH'
        )


def open_tracker(name: str, run: RunName) -> Tracker:
    """Make the tracker that `require_tracker` has accepted; whatever it raises is its own."""
    if name in TRACKERS:
        return TRACKERS[name](run)
    module, _, cls = name.rpartition('.')
    _import_from_here()
    return getattr(importlib.import_module(module), cls)(run)


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Leave out what is not finite ('nan', 'inf'): some trackers refuse the whole line then."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _import_from_here() -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
