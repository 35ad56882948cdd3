"""Decide whether feed tasks can read files themselves, instead of Spark. Runs on the driver.

Spark has planned the query. If its plan is one scan of Parquet or TFRecord files, with plain columns and with filters
that pyarrow evaluates in the same way, the splits are taken from the plan. Otherwise Spark reads the rows, and the
reason is given in words.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.cluster.jvm import each
from tfspark.cluster.preflight import is_on
from tfspark.errors import ConfigError
from tfspark.feed.scan import (
    MAX_FILES,
    Condition,
    FileVersion,
    ParquetScan,
    Scan,
    Selection,
    TFRecordScan,
    footer_of,
    row_groups,
)
from tfspark.feed.spark_names import are_alike
from tfspark.tfrecord.damage import FAILFAST

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.feed.scan import RowGroups
    from tfspark.tfrecord.splits import Slice

_PARQUET = "org.apache.spark.sql.execution.datasources.parquet.ParquetFileFormat"
"""The exact class is compared: table formats that delete rows or rename columns extend it."""
_WRAPPERS = ("WholeStageCodegenExec", "InputAdapter", "ColumnarToRowExec")
_TOLERANT = ("spark.sql.files.ignoreCorruptFiles", "spark.sql.files.ignoreMissingFiles")
_BY_FIELD_ID = "spark.sql.parquet.fieldId.read.enabled"
_READERS = 16
_TYPES = {
    "boolean": pa.bool_(),
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
}
"""Types whose values Spark and pyarrow read identically from any file. Times may be shifted between calendars."""
_COMPARED = ("boolean", "tinyint", "smallint", "int", "bigint", "string")
"""Types that compare identically. In Spark, NaN is greater than any number and equal to itself."""
_COMPARISONS = {
    "EqualTo": "equal",
    "GreaterThan": "greater",
    "GreaterThanOrEqual": "greater_equal",
    "LessThan": "less",
    "LessThanOrEqual": "less_equal",
}
_LOGIC = {"And": "and_kleene", "Or": "or_kleene", "Not": "invert"}
_OF_NULLS = {"IsNull": "is_null", "IsNotNull": "is_valid"}


class NotDirectError(Exception):
    """Spark must read the rows; the message is the reason."""


@dataclass(frozen=True)
class DirectRows:
    """Rows that feed tasks read themselves.

    Attributes:
        scan: reads a split.
        splits: one per partition, in Spark's order.
        kind: of the files: Parquet or TFRecord.
    """

    scan: Scan
    splits: tuple[tuple[RowGroups, ...] | tuple[Slice, ...], ...]
    kind: str


def direct_rows(spark: SparkSession, execution: JavaObject, anywhere: bool) -> DirectRows:
    """Return how feed tasks can read the rows of a planned query.

    Args:
        spark: the session.
        execution: Spark's `QueryExecution`, whose RDD has been made.
        anywhere: also accept Parquet files on file systems that the driver can open with pyarrow but executors perhaps
            cannot, because they have no library or only Spark's credentials.

    Raises:
        NotDirectError: feed tasks cannot read them.
        DataError: a file was changed or removed since Spark listed it.
        Py4JError: Spark's plan has a form that this code does not know.
    """
    query = _Query(execution.executedPlan())
    kind = _simple(query.scan)
    if kind == "FileSourceScanExec":
        return _parquet(spark, query, anywhere)
    if _is_python_scan(query.scan):
        return _tfrecords(query)
    raise NotDirectError(f"the rows come from {query.scan.nodeName()}, not from Parquet or TFRecord files")


def direct_records(execution: JavaObject) -> DirectRows | None:
    """Return how Python workers can read the rows of a query without Spark if they are those of TFRecord files.

    Args:
        execution: Spark's `QueryExecution`.

    Raises:
        NotDirectError: the rows come from elsewhere, or Spark must read them.
        Py4JError: Spark's plan has a form that this code does not know.
    """
    query = _Query(execution.executedPlan())
    return _tfrecords(query) if _is_python_scan(query.scan) else None


FILES, DATA_SOURCE = "LogicalRelation", "DataSourceV2Relation"
"""Sources that a query may have: files that Spark reads by itself, and data sources, also those written in Python."""


def only_source(df: DataFrame) -> str:
    """Return the kind of a DataFrame's source, without planning the query, which is slower.

    Empty if there are several sources, for a stream, on Spark Connect, and if columns differ only in case.
    """
    if not hasattr(df, "_jdf") or df.isStreaming or are_alike(df.columns):
        return ""
    sources = df._jdf.queryExecution().analyzed().collectLeaves()
    return _simple(sources.apply(0)) if sources.size() == 1 else ""


@dataclass(frozen=True)
class PlacedColumns:
    """Columns that a Python worker reads itself. It knows the file of each row, and the row's number in that file.

    Attributes:
        selection: the columns.
        files: the files by the path that Spark's ``_metadata.file_path`` gives.
    """

    selection: Selection
    files: Mapping[str, FileVersion]


def placed_columns(spark: SparkSession, execution: JavaObject) -> PlacedColumns:
    """Return how the columns of a planned query can be read by file and row number.

    Its filters do not matter, since Spark evaluates them.

    Args:
        spark: the session.
        execution: Spark's `QueryExecution` of these columns alone.

    Raises:
        NotDirectError: the rows are not those of one scan of Parquet files, or pyarrow reads the columns differently.
        DataError: a file was changed or removed since Spark listed it.
        Py4JError: Spark's plan has a form that this code does not know.
    """
    query = _Query(execution.executedPlan())
    if _simple(query.scan) != "FileSourceScanExec":
        raise NotDirectError(f"the rows come from {query.scan.nodeName()}, not from Parquet files")
    query.conditions = []
    selection, listed, in_paths = _parquet_files(spark, query, anywhere=False)
    if of_paths := sorted({name for name, _ in in_paths} & set(selection.columns.names)):
        raise NotDirectError(f"column {of_paths[0]!r} is part of the files' paths")
    files = {file for part in listed for file, *_ in part}
    return PlacedColumns(selection, {_in_metadata(file.path): file for file in files})


def _in_metadata(path: str) -> str:
    return path.replace("file:///", "file:/", 1)


def _is_python_scan(scan: JavaObject) -> bool:
    return _simple(scan) == "BatchScanExec" and _simple(scan.scan()) == "PythonScan"


@dataclass
class _Query:
    """A plan taken apart into columns and filters over one scan.

    Attributes:
        root: the physical plan.
        scan: the node that reads the files.
        given: (name, attribute number) of each output column.
        conditions: the filters, as Catalyst expressions.
    """

    root: JavaObject
    scan: JavaObject = field(init=False)
    given: list[tuple[str, int]] = field(init=False)
    conditions: list[JavaObject] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._of: dict[int, int] = {}
        self.given = [(column.name(), column.exprId().id()) for column in each(self.root.output())]
        node = self.root
        while (children := node.children()).size() == 1:
            name = _simple(node)
            if name == "ProjectExec":
                for column in each(node.projectList()):
                    self._note(column)
            elif name == "FilterExec":
                self.conditions.append(node.condition())
            elif name not in _WRAPPERS:
                raise NotDirectError(f"Spark computes the rows ({node.nodeName()}), they are not only read")
            node = children.apply(0)
        if _simple(node) == "AdaptiveSparkPlanExec":
            raise NotDirectError("Spark shuffles or joins the rows, they are not only read")
        if children.size():
            raise NotDirectError(f"the rows come from several sources ({node.nodeName()})")
        self.scan = node

    def _note(self, column: JavaObject) -> None:
        inner = column.child() if _simple(column) == "Alias" else column
        if _simple(inner) != "AttributeReference":
            raise NotDirectError(f"a column is computed: {column.sql()}")
        self._of[column.exprId().id()] = inner.exprId().id()

    def source(self, attribute: int) -> int:
        """Return the attribute of the scan from which `attribute` comes."""
        while attribute in self._of and self._of[attribute] != attribute:
            attribute = self._of[attribute]
        return attribute

    def selection(self, columns: Mapping[int, str]) -> Selection:
        """Return which columns are read, which are output, and the filter.

        Args:
            columns: attribute number -> name of the column in the files or their directories.
        """
        types = {a.exprId().id(): a.dataType().sql().lower() for a in each(self.scan.output())}
        found: dict[str, pa.DataType] = {}

        def read(attribute: int) -> str:
            source = self.source(attribute)
            if source not in columns:
                raise NotDirectError("a column is none of the files' own")
            found[columns[source]] = _arrow(columns[source], types[source])
            return columns[source]

        given = tuple((name, read(attribute)) for name, attribute in self.given)
        condition: Condition | None = None
        for expression in self.conditions:
            part = _condition(expression, read)
            condition = part if condition is None else ("and_kleene", condition, part)
        # In the order of the scan: Spark has removed the columns that are not needed.
        names = [columns[a] for a in types if a in columns and columns[a] in found]
        return Selection(pa.schema([(name, found[name]) for name in names]), given, condition)


def _condition(expression: JavaObject, read: Callable[[int], str]) -> Condition:
    kind = _simple(expression)
    below = list(each(expression.children()))
    if kind in _LOGIC:
        return (_LOGIC[kind], *(_condition(child, read) for child in below))
    if below and _simple(below[0]) == "AttributeReference":
        column = below[0].exprId().id()
        dtype = below[0].dataType().sql().lower()
        if kind in _OF_NULLS:
            return (_OF_NULLS[kind], read(column))
        if kind in _COMPARISONS and dtype in _COMPARED and _simple(below[1]) == "Literal":
            value = below[1].value()
            if value is not None:
                return (_COMPARISONS[kind], read(column), value.toString() if dtype == "string" else value)
    if kind == "AttributeReference" and expression.dataType().sql().lower() == "boolean":
        return ("equal", read(expression.exprId().id()), True)
    raise NotDirectError(f"pyarrow may not evaluate this filter alike: {expression.sql()}")


def _arrow(name: str, spark_type: str) -> pa.DataType:
    """Return the Arrow type to which Spark converts a SQL type, for example ``array<float>``."""
    if spark_type.startswith("array<"):
        return pa.list_(pa.field("element", _arrow(name, spark_type[len("array<") : -1])))
    if spark_type not in _TYPES:
        raise NotDirectError(f"column {name!r} is of type {spark_type}, which is left to Spark")
    return _TYPES[spark_type]


# --- Parquet ---------------------------------------------------------------------------------------


Listed = tuple[FileVersion, int, int, dict[str, object]]
"""A file of a split: the file, first byte, number of bytes, values of the partition columns."""


def _parquet(spark: SparkSession, query: _Query, anywhere: bool) -> DirectRows:
    selection, listed, in_paths = _parquet_files(spark, query, anywhere)
    kept = {name for name, _ in in_paths} & set(selection.columns.names)
    splits = tuple(
        tuple(
            row_groups(file, start, length, {n: v for n, v in values.items() if n in kept})
            for file, start, length, values in part
        )
        for part in listed
    )
    return DirectRows(ParquetScan(selection), splits, "Parquet")


def _parquet_files(
    spark: SparkSession, query: _Query, anywhere: bool
) -> tuple[Selection, list[list[Listed]], list[tuple[str, JavaObject]]]:
    """Return the columns to read, the files of each split, and the names and types of the partition columns."""
    scan, relation = query.scan, query.scan.relation()
    name = relation.fileFormat().getClass().getName()
    if name != _PARQUET:
        raise NotDirectError(f"the files are read by {name.rpartition('.')[2]}, not as plain Parquet")
    tolerant = [key for key in _TOLERANT if is_on(spark, key)] + [
        option
        for option in ("ignoreCorruptFiles", "ignoreMissingFiles")
        if relation.options().contains(option.lower())
    ]
    if tolerant or is_on(spark, _BY_FIELD_ID):
        raise NotDirectError(f"{(tolerant or [_BY_FIELD_ID])[0]} is set, which only Spark's reader knows")
    outputs = list(each(scan.output()))
    in_files = [field.name() for field in each(scan.requiredSchema().fields())]
    in_paths = [(field.name(), field.dataType()) for field in each(relation.partitionSchema().fields())]
    names = [*in_files, *(name for name, _ in in_paths)]
    columns = {a.exprId().id(): name for a, name in zip(outputs, names, strict=False)}
    selection = query.selection(columns)
    partitions = scan.inputRDD()
    if _simple(partitions) != "FileScanRDD":
        raise NotDirectError(f"Spark reads the files by {_simple(partitions)}")
    listed = [list(_listed(part, in_paths)) for part in each(partitions.filePartitions())]
    remote = next((f.path for part in listed for f, *_ in part if not f.path.startswith("file:")), None)
    if remote is not None and not anywhere:
        raise NotDirectError(
            f"executors may not be able to open {remote} without Spark; scan='direct' lets them try"
        )
    wanted = {n: selection.columns.field(n).type for n in selection.columns.names if n in in_files}
    _check_footers({file for part in listed for file, *_ in part}, wanted)
    return selection, listed, in_paths


def _listed(part: JavaObject, in_paths: list[tuple[str, JavaObject]]) -> Iterator[Listed]:
    """Yield each file of a split."""
    for file in part.files():
        path = file.urlEncodedPath()
        if not path.startswith("file:"):
            path = file.toPath().toString()
        values = {}
        for number, (name, dtype) in enumerate(in_paths):
            value = file.partitionValues().get(number, dtype)
            values[name] = value.toString() if value is not None and dtype.sql() == "STRING" else value
        version = FileVersion(path, file.fileSize(), file.modificationTime())
        yield version, file.start(), file.length(), values


def _check_footers(files: set[FileVersion], wanted: Mapping[str, pa.DataType]) -> None:
    """Check that each file has the columns, with types that pyarrow reads as Spark does."""
    if len(files) > MAX_FILES:
        raise NotDirectError(
            f"there are {len(files)} files, more than the {MAX_FILES} whose footers are looked at"
        )

    def look(file: FileVersion) -> None:
        try:
            types = footer_of(file).types
        except (pa.ArrowException, OSError, ConfigError) as error:
            raise NotDirectError(f"pyarrow cannot open {file.path}: {str(error).splitlines()[0]}") from error
        if are_alike(types):
            raise NotDirectError(f"{file.path} has columns whose names differ in case only")
        for name, dtype in wanted.items():
            if name not in types or "." in name:
                raise NotDirectError(f"{file.path} has no column {name!r} by just this name")
            if _plain(types[name]) != dtype:
                raise NotDirectError(
                    f"column {name!r} of {file.path} is {types[name]}, Spark is to read it as {dtype}"
                )

    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(look, files):
            pass


def _plain(dtype: pa.DataType) -> pa.DataType:
    """Return a column's type as Spark would pass it on; Arrow may have written the column."""
    kinds = pa.types
    if kinds.is_dictionary(dtype):
        return _plain(dtype.value_type)
    if kinds.is_list(dtype) or kinds.is_large_list(dtype) or kinds.is_fixed_size_list(dtype):
        return pa.list_(pa.field("element", _plain(dtype.value_type)))
    unsigned = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
    large = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return unsigned.get(dtype, large.get(dtype, dtype))


# --- TFRecords -------------------------------------------------------------------------------------


def _tfrecords(query: _Query) -> DirectRows:
    splits = _tfrecord_splits(query.scan)
    columns = {a.exprId().id(): a.name() for a in each(query.scan.output())}
    selection = query.selection(columns)
    if any(split.mode != FAILFAST for split in splits):
        # The feed does not read all columns, so it would keep a record that Spark drops for one of the others.
        raise NotDirectError("records that do not fit are dropped, which needs all of their columns")
    is_raw = any(split.raw for split in splits)
    return DirectRows(TFRecordScan(selection, is_raw), tuple(split.slices for split in splits), "TFRecord")


def _tfrecord_splits(scan: JavaObject) -> list[Any]:
    """Return the splits of a data source that is written in Python if it is tfspark's own."""
    name = scan.nodeName().strip()
    if not name.endswith((" tfrecord", " tfrecords")):
        raise NotDirectError(f"the rows come from {name}, not from Parquet or TFRecord files")
    try:
        splits = [pickle.loads(bytes(part.pickedPartition())) for part in each(scan.inputPartitions())]
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        raise NotDirectError(f"the splits of {name} are not tfspark's: {error}") from error
    if not all(type(split).__module__ == "tfspark.tfrecord.datasource" for split in splits):
        raise NotDirectError(f"the splits of {name} are not tfspark's")
    return splits


def tfrecord_files(execution: JavaObject) -> list[list[str]]:
    """Return the paths of the TFRecord files that each scan of a planned query reads.

    Args:
        execution: Spark's `QueryExecution`.

    Raises:
        NotDirectError: another data source written in Python is read.
        Py4JError: Spark's plan has a form that this code does not know.
    """
    scans = filter(_is_python_scan, each(execution.sparkPlan().collectLeaves()))
    splits = [_tfrecord_splits(scan) for scan in scans]
    return [sorted({piece.file.path for split in of_scan for piece in split.slices}) for of_scan in splits]


def _simple(java: JavaObject) -> str:
    name: str = java.getClass().getSimpleName()
    return name
