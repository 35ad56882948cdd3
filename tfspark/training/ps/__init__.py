"""Asynchronous training with parameter servers. Runs in trainers."""
