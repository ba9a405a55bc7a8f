"""Everything on disk: atomic writes, locks, checkpoints, workdirs, metrics, provenance."""
