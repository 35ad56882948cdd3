"""Lists of files, partition columns, splits, inferred schemas and feature specs; without a Spark session."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import types as T

from tfspark.errors import ConfigError, DataError
from tfspark.tfrecord import FeatureSpec, feature_specs, list_files, read_schema
from tfspark.tfrecord.encode import encode_batch
from tfspark.tfrecord.files import InputFile, partition_fields, paths_of
from tfspark.tfrecord.options import Options, parse_options
from tfspark.tfrecord.splits import plan_splits, split_size


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encode_batch(pa.record_batch(columns)).tobytes() if columns else b""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a=1/b=x/p0.tfrecord",
        "a=2/b=y%2Fz/p0.tfrecord.gz",
        "a=2/b=x/p1",
        "_SUCCESS",
        "a=1/.hidden",
    ):
        write(tmp_path / name, v=[1])
    write(tmp_path / "_temporary/a=9/b=x/p9.tfrecord", v=[1])
    return tmp_path


GLOBS = [
    ("", 3, "the directory"),
    ("a=2", 2, "one partition"),
    ("a=*/b=x", 2, "a glob that matches directories"),
    ("a=?/b=*/*.tfrecord", 1, "a glob that matches files"),
    ("a={1,3}", 1, "alternatives"),
    ("a=[2-9]", 2, "a range"),
    ("a=[!2]", 1, "a negated range"),
    ("a=1/b=x/p0.tfrecord", 1, "a file"),
]


@pytest.mark.parametrize(("glob", "count", "why"), GLOBS)
@pytest.mark.parametrize("scheme", ["", "file:", "file://"])
def test_list_of_a_path_finds_visible_files(tree: Path, scheme: str, glob: str, count: int, why: str) -> None:
    files = list_files(f"{scheme}{tree}/{glob}".rstrip("/"))
    assert len(files) == count
    assert all(Path(file.path).is_file() for file in files)


def test_list_of_partitioned_directories_reads_values_and_compression(tree: Path) -> None:
    files = list_files(str(tree))
    assert [(file.partition, file.compression) for file in files] == [
        ((("a", "1"), ("b", "x")), ""),
        ((("a", "2"), ("b", "x")), ""),
        ((("a", "2"), ("b", "y/z")), "gzip"),
    ]
    assert partition_fields(files) == [pa.field("a", pa.int32()), pa.field("b", pa.string())]


def test_list_of_several_paths_keeps_their_order(tree: Path) -> None:
    files = list_files([str(tree / "a=2"), str(tree / "a=1")])
    assert [Path(file.path).name for file in files] == ["p1", "p0.tfrecord.gz", "p0.tfrecord"]


def test_list_detects_gzip_without_a_suffix_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(gzip.compress(b""))
    assert list_files(str(tmp_path))[0].compression == "gzip"


@pytest.mark.parametrize("path", ["nothing", "empty", "nothing/*", "a*"])
def test_list_of_a_path_without_files_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="check the path"):
        list_files(str(tmp_path / path))


def test_list_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        list_files("nosuch://host/path")


def test_paths_of_no_path_are_refused() -> None:
    assert paths_of({"paths": '["/a", "/b"]'}) == ["/a", "/b"]
    with pytest.raises(ConfigError, match="got none"):
        paths_of({})


def test_partition_fields_of_uneven_directories_are_refused() -> None:
    files = [InputFile("/r/a=1/f", 1, "", (("a", "1"),)), InputFile("/r/f", 1, "")]
    with pytest.raises(DataError, match="same partition columns"):
        partition_fields(files)


PARTITION_TYPES = [
    (["1", "-2"], pa.int32()),
    (["1", None], pa.int32()),
    (["1", "3000000000"], pa.int64()),
    (["1", "x"], pa.string()),
    ([None], pa.string()),
    (["12345678901234567890"], pa.string()),
]


@pytest.mark.parametrize(("values", "expected"), PARTITION_TYPES)
def test_partition_fields_infer_the_narrowest_type(values: list[str | None], expected: pa.DataType) -> None:
    files = [InputFile("/f", 1, "", (("a", value),)) for value in values]
    assert partition_fields(files)[0].type == expected


def sizes(split_bytes: int, *num_bytes: int, compression: str = "") -> list[list[tuple[int, int | None]]]:
    files = [InputFile(f"/{place}", size, compression) for place, size in enumerate(num_bytes)]
    return [[(piece.start, piece.end) for piece in group] for group in plan_splits(files, split_bytes)]


def test_plan_splits_a_large_uncompressed_file() -> None:
    assert sizes(100, 250) == [[(0, 100)], [(100, 200)], [(200, None)]]


def test_plan_does_not_split_a_large_compressed_file() -> None:
    assert sizes(100, 250, compression="gzip") == [[(0, None)]]


def test_plan_puts_small_files_together() -> None:
    assert sizes(100, 40, 60, 1, 99, 0) == [[(0, None)] * 2, [(0, None)] * 2, [(0, None)]]


def test_plan_without_splitting_gives_one_partition_per_file() -> None:
    assert sizes(0, 250, 1) == [[(0, None)], [(0, None)]]


@pytest.mark.parametrize(
    ("total", "given", "expected"),
    [(1 << 40, None, 128 << 20), (10, None, 32 << 20), (2 << 30, None, 64 << 20), (10, 7, 7), (10, 0, 0)],
)
def test_split_size_depends_on_the_size_of_the_dataset(total: int, given: int | None, expected: int) -> None:
    assert split_size([InputFile("/f", total, "")], given) == expected


def test_read_schema_takes_the_union_over_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a=1/0", x=[[1], [2]], s=["é", "b"], f=pa.array([1.5, 2.5], pa.float32()))
    write(tmp_path / "a=2/0", x=[[1], [2, 3]], b=[b"\xff", b"a"], t=[["p", "q"], []])
    assert read_schema(str(tmp_path)) == pa.schema(
        [
            ("b", pa.binary()),
            ("f", pa.float32()),
            ("s", pa.string()),
            ("t", pa.list_(pa.string())),
            ("x", pa.list_(pa.int64())),
            ("a", pa.int32()),
        ]
    )


def test_read_schema_infers_binary_for_raw_numbers_that_are_valid_utf8(tmp_path: Path) -> None:
    numbers, lines = np.array([1, 2, 127], "<i4").tobytes(), b"two\nlines\tand a tab, \x1b[1mbold"
    write(tmp_path / "0", raw=[numbers, b"text"], text=[lines, "é".encode()])
    assert read_schema(str(tmp_path)) == pa.schema([("raw", pa.binary()), ("text", pa.string())])


def test_read_schema_reads_only_the_given_number_of_samples(tmp_path: Path) -> None:
    write(tmp_path / "0", x=[[1]] * 10 + [[1, 2]])
    assert read_schema(str(tmp_path), samples=10).field("x").type == pa.int64()
    assert read_schema(str(tmp_path), samples=11).field("x").type == pa.list_(pa.int64())


def test_error_of_read_schema_for_contradicting_kinds_names_the_feature(tmp_path: Path) -> None:
    write(tmp_path / "0", x=[1])
    write(tmp_path / "1", x=["1"])
    with pytest.raises(DataError, match=r"1, byte 0: feature 'x': expected int64 values .* got bytes"):
        read_schema(str(tmp_path))


def test_error_of_read_schema_without_records_asks_for_a_declared_schema(tmp_path: Path) -> None:
    write(tmp_path / "0")
    with pytest.raises(DataError, match=r"spark\.read\.schema"):
        read_schema(str(tmp_path))


def test_feature_specs_of_a_spark_schema_have_the_types_of_its_columns() -> None:
    schema = T.StructType().add("x", T.ArrayType(T.DoubleType())).add("y", "integer").add("s", "string")
    schema = schema.add("b", T.ArrayType(T.BinaryType())).add("d", "decimal(5,2)").add("t", "timestamp")
    assert feature_specs(schema.add("o", "boolean")) == (
        FeatureSpec("x", "float", True, "float64"),
        FeatureSpec("y", "int64", False, "int32"),
        FeatureSpec("s", "bytes", False, "string"),
        FeatureSpec("b", "bytes", True, "bytes"),
        FeatureSpec("d", "float", False, "float32"),
        FeatureSpec("t", "int64", False, "int64"),
        FeatureSpec("o", "int64", False, "bool"),
    )


def test_feature_specs_of_an_arrow_schema_need_no_spark() -> None:
    program = (
        "import sys, pyarrow as pa; from tfspark import tfrecord;"
        "print(tfrecord.feature_specs(pa.schema([('x', pa.float32())]))[0].kind);"
        "print(sorted({'pyspark', 'pandas', 'tensorflow'} & set(sys.modules)))"
    )
    came = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert came.stdout.splitlines() == ["float", "[]"]


def test_feature_specs_of_a_map_are_refused() -> None:
    with pytest.raises(DataError, match=r"column 'm'.*map<string,int>"):
        feature_specs(T.StructType().add("m", T.MapType(T.StringType(), T.IntegerType())))


def test_names_of_options_may_have_any_case() -> None:
    given = {
        "PATH": "/x",
        "Mode": "dropmalformed",
        "compression": "GZIP",
        "infersamples": "5",
        "splitBytes": "0",
    }
    assert parse_options(given) == Options("DROPMALFORMED", "gzip", 5, 0)


@pytest.mark.parametrize(
    "given",
    [
        {"codec": "gzip"},
        {"mode": "PERMISSIVE"},
        {"compression": "lzo"},
        {"inferSamples": "0"},
        {"splitBytes": "1m"},
    ],
)
def test_unknown_options_and_values_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        parse_options(given)
