"""Train Keras models across a Spark cluster, where the data already is."""
