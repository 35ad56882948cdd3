"""Lets Spark find the data source under the name ``tfrecords``, too; see ``pyspark_tfrecord``."""

from tfspark.tfrecord.datasource import TFRecordsDataSource as DefaultSource

__all__ = ["DefaultSource"]
