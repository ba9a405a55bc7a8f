"""Metrics, and the evaluation of parameters on data."""
