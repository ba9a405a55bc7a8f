"""Ablations: experiment files, their plan and its execution, and the statistics of their results.

The names below are all that an experiment file needs.
"""

from transformer_jax.ablation.claims import Claim
from transformer_jax.ablation.differences import Difference
from transformer_jax.ablation.experiment import Axis, Experiment, Published
from transformer_jax.ablation.experiment_files import (
    at_scale,
    config_file,
    load_experiment,
    state_bytes,
)
from transformer_jax.ablation.metric import Metric
from transformer_jax.ablation.tune import Tune

__all__ = [
    'Axis',
    'Claim',
    'Difference',
    'Experiment',
    'Metric',
    'Published',
    'Tune',
    'at_scale',
    'config_file',
    'load_experiment',
    'state_bytes',
]
