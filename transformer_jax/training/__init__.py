"""The train state, the training step and the loop around it."""
