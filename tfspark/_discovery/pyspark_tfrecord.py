"""Lets Spark find the ``tfrecord`` data source by itself.

PySpark imports top-level modules named ``pyspark_*`` and registers their ``DefaultSource``; the wheel installs
this file as such a module.
"""

from tfspark.tfrecord.datasource import TFRecordDataSource as DefaultSource

__all__ = ["DefaultSource"]
