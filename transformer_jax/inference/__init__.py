"""What a trained run can be asked: texts, attention maps, probes."""
