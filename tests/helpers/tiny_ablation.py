"""A tiny ablation, and the files that its runs would leave."""

import json
import runpy

from helpers.support import CONFIG_FILE, TINY

from transformer_jax import config as config_lib
from transformer_jax.ablation import Experiment, Metric
from transformer_jax.ablation.plan import Plan
from transformer_jax.storage import manifest

METRICS = (Metric('exact_match'), Metric('loss', 'validation', 'last'))
VARIANTS = {
    'base': {},
    'one head': {'model.num_heads': 1},
    'two heads': {'model.num_heads': 2},
    'no dropout': {'model.dropout': 0.0},
}
BASE = {'base': {}}


def table(variants=VARIANTS, metrics=METRICS, **changes) -> Experiment:
    """Make a tiny experiment; TINY has two heads."""
    base = runpy.run_path(str(CONFIG_FILE))['get_config']('en-de')
    base.update_from_flattened_dict(TINY | {'train.steps': 4, 'checkpoint.every': 2} | changes)
    return Experiment('a claim', base, variants, metrics, seeds=2)


def plan(root, *args, only=(), part='0/1', seeds=0, **changes) -> Plan:
    made = Plan(table(*args, **changes), 'table.py', root, seeds)
    made.narrow(only, part)
    return made


def names(runs) -> list[str]:
    return [run.name for run in runs]


EVERYTHING = ['base/0', 'base/1', 'one-head/0', 'one-head/1', 'no-dropout/0', 'no-dropout/1']


def write_result(run, **changes) -> None:
    """Write a sound result.json of a run that was never trained."""
    result = {
        'scores': {'test exact_match': 0.5, 'validation loss': 1.0},
        'seed': run.seed,
        'params': 1,
        'non_embedding_params': 1,
        'flops': 1,
        'step_seconds': None,
        'memory_bytes': None,
        'wall_seconds': 1.0,
        'steps': 4,
        'step': 4,
        'machine': {},
        'commit': None,
        'date': '2026-11-22',
    }
    (run.workdir / 'result.json').write_text(json.dumps(result | changes))


def write_run(config, path) -> None:
    """Write the files that training leaves in the folder of a run."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
    (path / 'metrics.jsonl').touch()


def write_checkpoint(path, step, **meta) -> None:
    """Write a checkpoint without a state; it says how many steps a run or a group has done."""
    folder = path / 'checkpoints' / str(step)
    folder.mkdir(parents=True)
    (folder / 'meta.json').write_text(json.dumps({'step': step, 'arrays': {}, 'meta': meta}))
    manifest.write(folder)
