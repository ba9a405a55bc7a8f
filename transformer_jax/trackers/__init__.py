"""Trackers of experiments, each in a process of its own, so that none can stop or hang a run."""
