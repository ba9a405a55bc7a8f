"""Layers: parameters with logical axis names, and the pure functions that they share."""
