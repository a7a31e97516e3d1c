"""The training step, its checkpoints, and the Ray trainer that runs it."""
