"""The driver's part: reserve executors as TensorFlow nodes, supervise and feed them."""
