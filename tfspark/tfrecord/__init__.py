"""The TFRecord format: framing, the ``tf.train.Example`` codec, and the Spark data source."""
