"""What a configuration costs: FLOPs, memory, time."""
