"""The path of rows from a Spark DataFrame to batches in the trainer."""
