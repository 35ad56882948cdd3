"""Reserving executors as TensorFlow nodes and supervising them."""
