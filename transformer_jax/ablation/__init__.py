"""Tables of variants: experiment files, plans, runs, statistics."""
