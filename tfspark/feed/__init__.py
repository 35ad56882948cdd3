"""From rows of a Spark DataFrame to batches in the trainer."""
