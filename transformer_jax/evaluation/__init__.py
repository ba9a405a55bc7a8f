"""Metrics, and the evaluation of parameters against data."""
