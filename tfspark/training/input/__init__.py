"""Make tf.data datasets from the feed or from files. Runs in the trainer."""
