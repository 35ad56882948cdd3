"""The code of a trainer process: strategies, the training loop, checkpoints."""
