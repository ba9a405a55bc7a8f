"""Everything on disk: atomic writes, locks, manifests, checkpoints, workdirs."""
