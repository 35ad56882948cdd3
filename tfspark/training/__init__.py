"""What runs inside a trainer process: strategies, the fit loop, checkpoints."""
