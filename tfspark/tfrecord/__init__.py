"""The TFRecord format: framing, the ``tf.train.Example`` codec, and the Spark data source.

Imports neither Spark nor TensorFlow before they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.tfrecord.batches import read_batches
from tfspark.tfrecord.files import InputFile, list_files
from tfspark.tfrecord.infer import count_records, read_schema
from tfspark.tfrecord.schema import FeatureSpec, arrow_feature_specs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = [
    "FeatureSpec",
    "InputFile",
    "count_records",
    "feature_specs",
    "list_files",
    "read_batches",
    "read_schema",
    "register",
]


def register(spark: SparkSession) -> None:
    """Register the formats ``"tfrecord"`` and ``"tfrecords"`` of ``spark.read.format`` in a session.

    A classic session finds the formats through the session that is active in the calling thread. A thread that your
    program starts has no active session. This function makes ``spark`` the active one, so call it in each thread that
    reads or writes TFRecord files.

    Args:
        spark: a classic or a Connect session. Its executors need tfspark installed.
    """
    from tfspark.driver_python import use_own_python
    from tfspark.tfrecord.datasource import TFRecordDataSource, TFRecordsDataSource

    use_own_python(spark)
    spark.dataSource.register(TFRecordDataSource)
    spark.dataSource.register(TFRecordsDataSource)
    if hasattr(spark, "_jsparkSession"):
        jvm: Any = spark._jvm
        jvm.org.apache.spark.sql.SparkSession.setActiveSession(spark._jsparkSession)


def feature_specs(schema: Any) -> tuple[FeatureSpec, ...]:
    """Describe columns as features: enough to build a ``tf.io.parse_example`` spec without Spark.

    Args:
        schema: a Spark ``StructType`` or an Arrow schema.

    Raises:
        DataError: a column has a type that an Example cannot hold.
    """
    if isinstance(schema, pa.Schema):
        return arrow_feature_specs(schema)
    from tfspark.tfrecord.spark_types import arrow_schema

    return arrow_feature_specs(arrow_schema(schema))
