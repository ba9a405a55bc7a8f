"""Optimizers, learning-rate schedules, and the roles of parameters."""
