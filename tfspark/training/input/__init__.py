"""From the feed or from files to a tf.data dataset. Runs in the trainer."""
