"""How well a run uses its devices: model FLOPs, MFU, where its time goes, traces of its steps."""
