"""Optimizers, learning-rate schedules, and the roles of parameters."""

from transformer_jax.optim.optimizers import OPTIMIZERS, Optimizer
from transformer_jax.optim.schedules import SCHEDULES, Schedule

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'Optimizer', 'Schedule']
