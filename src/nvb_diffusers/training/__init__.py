"""Functions shared by the training scripts: data, degradation, losses and checkpoints."""
