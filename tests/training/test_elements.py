"""Convert batches to elements for Keras, in TensorFlow: ragged columns, images, Examples, and their errors."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.pictures import picture, png

from tfspark.errors import DataError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.stream import encode_sample
from tfspark.tfrecord.encode import encode_batch
from tfspark.tfrecord.framing import HEADER
from tfspark.training.input.graph_errors import as_data_error, image_scope

DONE_S = 120.0


def examples(**features: list[Any]) -> pa.RecordBatch:
    """Return rows as serialized Examples: the records that the data source writes, without framing."""
    stream, records = bytes(encode_batch(pa.RecordBatch.from_pydict(features))), []
    while stream:
        (length,) = struct.unpack("<Q", stream[:8])
        records.append(stream[HEADER : HEADER + length])
        stream = stream[HEADER + length + 4 :]
    return pa.RecordBatch.from_pydict({"record": pa.array(records, pa.binary())})


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@dataclass(frozen=True)
class Case:
    """Rows with their declared columns, and the expected elements, or expected parts of the error's message."""

    columns: Columns
    batches: list[pa.RecordBatch]
    x: list[Any] = field(default_factory=list)
    y: list[Any] = field(default_factory=list)
    weight: list[Any] = field(default_factory=list)
    says: tuple[str, ...] = ()
    replicas: int = 1
    hook: str = ""


FLOATS = {"x": [[1.5, 2.5], [3.5, 4.5]], "y": [1, 0]}
TWO = Columns((Column("x"),), Column("y"), num_classes=2, examples="record")
FILE = Column("a photo!", shape=(4, 6, 3), decode="image")
PICTURES = [png(picture(0)), png(picture(1))]


def records(*rows: dict[str, Any]) -> list[pa.RecordBatch]:
    """Return one batch of Examples. Rows may lack features."""
    parts = [examples(**{name: [value] for name, value in row.items()}) for row in rows]
    return [pa.Table.from_batches(parts).combine_chunks().to_batches()[0]]


CASES: dict[str, Case] = {
    "padded to the longest of each batch": Case(
        Columns((Column("v", ragged="pad", pad_value=9),), Column("y")),
        [batch(v=[[1], [2, 3]], y=[0, 1]), batch(v=[[4], []], y=[0, 1])],
        x=[("int64", [[1, 9], [2, 3]]), ("int64", [[4], [9]])],
        y=[("int64", [0, 1]), ("int64", [0, 1])],
        weight=[[1, 1], [1, 1]],
    ),
    "ragged, for two replicas": Case(
        Columns((Column("v", ragged="ragged"),), Column("y")),
        [batch(v=[[1], [2, 3], [], [4]], y=[0, 1, 2, 3])],
        x=[("ragged int64", [[1], [2, 3]]), ("ragged int64", [[], [4]])],
        y=[("int64", [0, 1]), ("int64", [2, 3])],
        weight=[[1, 1], [1, 1]],
        replicas=2,
    ),
    "a batch of empty rows": Case(
        Columns((Column("v", ragged="pad"),), Column("y", ragged="ragged")),
        [batch(v=pa.array([[], []], pa.list_(pa.float32())), y=[[1], [2]])],
        x=[("float32", [[], []])],
        y=[("ragged int64", [[1], [2]])],
        weight=[[1, 1]],
    ),
    "a user's function with loops and conditions over tensors": Case(
        Columns((Column("x"),), Column("y")),
        [batch(x=[1, 2], y=[3, 4]), batch(x=[10, 20], y=[3, 4])],
        x=[("int64", [4, 5]), ("int64", [-10, -20])],
        y=[("int64", [3, 4])] * 2,
        weight=[[1, 1]] * 2,
        hook="with_python_control_flow",
    ),
    "several labels": Case(
        Columns((Column("x"),), (Column("y"), Column("z", scale=2.0))),
        [batch(x=[1, 2], y=[3, 4], z=[5, 6])],
        x=[("int64", [1, 2])],
        y=[{"y": ("int64", [3, 4]), "z": ("float32", [2.5, 3.0])}],
        weight=[[1, 1]],
    ),
    "examples": Case(
        Columns((Column("x"),), Column("y"), 2, ((1, 0.5),), "record"),
        [examples(**FLOATS)],
        x=[("float32", [[1.5, 2.5], [3.5, 4.5]])],
        y=[("int64", [1, 0])],
        weight=[[0.5, 1]],
    ),
    "examples with declared shapes, dtypes and scales": Case(
        Columns(
            (
                Column("x", shape=(2, 1), dtype="float64"),
                Column("y", shape=(1,), dtype="uint8", scale=4.0),
                Column("r", dtype="uint8", shape=(1, 2)),
                Column("t"),
            ),
            examples="record",
        ),
        [examples(**FLOATS, r=[b"\x01\x02", b"\x03\x04"], t=["a", "b"])],
        x=[
            {
                "x": ("float64", [[[1.5], [2.5]], [[3.5], [4.5]]]),
                "y": ("float32", [[0.25], [0.0]]),
                "r": ("uint8", [[[1, 2]], [[3, 4]]]),
                "t": ("string", ["a", "b"]),
            }
        ],
        weight=[[1, 1]],
    ),
    "examples with rows of unequal lengths": Case(
        Columns(
            (
                Column("p", ragged="pad", pad_to=3, pad_value=-1, dtype="int32"),
                Column("r", ragged="ragged"),
                Column("e", ragged="pad", dtype="float32"),
            ),
            Column("y"),
            examples="record",
        ),
        [examples(p=[[1], [2, 3]], r=[["a", "b"], []], e=[None, [1.5]], y=[1, 0])],
        x=[
            {
                "p": ("int32", [[1, -1, -1], [2, 3, -1]]),
                "r": ("ragged string", [["a", "b"], []]),
                "e": ("float32", [[0.0], [1.5]]),
            }
        ],
        y=[("int64", [1, 0])],
        weight=[[1, 1]],
    ),
    "pictures in examples": Case(
        Columns((FILE,), Column("y"), examples="record"),
        [examples(**{"a photo!": PICTURES, "y": [1, 0]})],
        x=[("uint8", [picture(0).tolist(), picture(1).tolist()])],
        y=[("int64", [1, 0])],
        weight=[[1, 1]],
    ),
    "a file that is no picture": Case(
        Columns((FILE,)),
        [batch(**{"a photo!": [PICTURES[0], b"GIF? no"]})],
        says=(
            "column 'a photo!' expected JPEG, PNG, GIF or BMP files",
            "one is none or damaged",
            "filter or repair",
        ),
    ),
    "a picture that was cut off": Case(
        Columns((FILE,)),
        [batch(**{"a photo!": [PICTURES[0], PICTURES[1][:60]]})],
        says=("column 'a photo!' expected JPEG, PNG, GIF or BMP files",),
    ),
    "a picture of another size": Case(
        Columns((FILE,)),
        [batch(**{"a photo!": [PICTURES[0], png(picture(1, 5, 7))]})],
        says=("column 'a photo!' expected images of shape [4, 6, 3]; declare resize=True", "came 5 7 3"),
    ),
    "an Example without a feature": Case(
        TWO,
        records({"x": [1.0, 2.0], "y": 1}, {"y": 1}),
        says=("column 'x' of the Examples", "could not be found"),
    ),
    "an Example with too many values": Case(
        TWO,
        records({"x": [1.0, 2.0], "y": 1}, {"x": [1.0, 2.0, 3.0], "y": 1}),
        says=("column 'x' of the Examples", "Values size: 3 but output shape: [2]", "declare it ragged"),
    ),
    "an Example with values of another kind": Case(
        TWO,
        records({"x": [1.0, 2.0], "y": 1}, {"x": [1, 2], "y": 1}),
        says=("column 'x' of the Examples", "Data types don't match"),
    ),
    "a record that is no Example": Case(
        TWO,
        [batch(record=[examples(**FLOATS).column(0)[0].as_py(), b"junk"])],
        says=("Example",),
    ),
    "a first record that is no Example": Case(
        TWO,
        [batch(record=[b"junk"])],
        says=("column 'record' expected serialized tf.train.Example records", "junk"),
    ),
    "a pad_value that the feature cannot hold": Case(
        Columns((Column("v", ragged="pad", pad_value=0.5),), examples="record"),
        [examples(v=[[1, 2], [3]])],
        says=("column 'v': expected pad_value to be a number that int64 can hold, got 0.5",),
    ),
    "a first Example without a feature": Case(
        TWO, [examples(x=[[1.0]])], says=("column 'y' is no feature of the first Example, which has ['x']",)
    ),
    "a label outside its classes": Case(
        TWO,
        [examples(x=[[1.0], [2.0]], y=[1, 2])],
        says=("label 'y' expected classes from 0 to 1; correct the data or num_classes; came 2",),
    ),
    "a label that is no class": Case(
        TWO,
        [examples(x=[[1.0]], y=[1.5])],
        says=("label 'y' is of kind float in the Examples",),
    ),
    "a value that the dtype cannot hold": Case(
        Columns((Column("v", dtype="uint8"),), examples="record"),
        [examples(v=[7, 300])],
        says=("column 'v' holds values that the declared dtype uint8 cannot", "came 300"),
    ),
    "raw values of unequal lengths": Case(
        Columns((Column("r", dtype="int16"),), examples="record"),
        [examples(r=[b"abcd", b"ab"])],
        says=("column 'r' expected as many bytes in every Example", "same size"),
    ),
    "a row longer than pad_to": Case(
        Columns((Column("v", ragged="pad", pad_to=1),), examples="record"),
        [examples(v=[[1, 2], [3]])],
        says=("column 'v' has a row of more values than pad_to=1; raise pad_to; came 2",),
    ),
    "a ragged feature that the first Example lacks": Case(
        Columns((Column("v", ragged="pad"),), examples="record"),
        [examples(w=[1], v=pa.array([None], pa.list_(pa.int64())))],
        says=("column 'v' is empty in the first Example; expected a dtype beside ragged",),
    ),
    "a pad_value that the type cannot hold": Case(
        Columns((Column("v", ragged="pad", pad_value="x"),)),
        [batch(v=[[1]])],
        says=("column 'v': expected pad_value to be a number that int64 can hold, got 'x'",),
    ),
}


NUM_FILES = 1000
"""When each file was a node of the graph, reading this number of files took more than a minute."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the output of a process with TensorFlow, for all cases and for many files.

    Each file has one record, except for the last, which has 51.
    """
    given = [
        {
            "columns": case.columns.to_json(),
            "batches": [encode_sample(rows) for rows in case.batches],
            "replicas": case.replicas,
            "hook": case.hook,
        }
        for case in CASES.values()
    ]
    folder = tmp_path_factory.mktemp("elements")
    (folder / "cases.json").write_text(json.dumps(given))
    (folder / "files").mkdir()
    for number in range(NUM_FILES):
        labels = [number] if number < NUM_FILES - 1 else list(range(number, number + 51))
        rows = batch(x=[float(label) for label in labels], label=labels)
        (folder / f"files/part-{number:05d}").write_bytes(encode_batch(rows))
    script = str(Path(__file__).with_name("elements_in_tf.py"))
    done = subprocess.run(
        [sys.executable, script, str(folder / "cases.json"), str(folder / "files")],
        capture_output=True,
        text=True,
        timeout=DONE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {name: json.loads(rest) for name, _, rest in lines if name in ("RESULT", "FILES")}


@pytest.fixture(scope="module")
def outcomes(printed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the outcome of each case."""
    return dict(zip(CASES, printed["RESULT"], strict=True))


def test_epoch_of_many_files_has_each_row_once_for_any_number_of_devices(
    printed: dict[str, Any],
) -> None:
    """The last batch is padded with copies of rows, of weight 0."""
    labels = list(range(NUM_FILES + 50))
    for steps in printed["FILES"]:
        assert [len(step) for step in steps] == [100] * 11
        assert sorted({label for step in steps for label in step}) == labels
        assert [label for step in steps for label in step][: len(labels)] == labels


def told(tensor: Any) -> Any:
    """Return an expected tensor in the form in which the process prints it."""
    if isinstance(tensor, dict):
        return {name: told(value) for name, value in tensor.items()}
    dtype, rows = tensor
    return {"dtype": dtype, "rows": rows}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.says])
def test_element_of_a_batch_has_the_expected_tensors_labels_and_weights(
    name: str, outcomes: dict[str, Any]
) -> None:
    case, outcome = CASES[name], outcomes[name]
    assert "elements" in outcome, outcome
    assert [element["x"] for element in outcome["elements"]] == [told(tensor) for tensor in case.x]
    assert [element["weight"] for element in outcome["elements"]] == case.weight
    labels = case.y or case.x
    assert [element["y"] for element in outcome["elements"]] == [told(tensor) for tensor in labels]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.says])
def test_error_of_wrong_rows_names_the_column(name: str, outcomes: dict[str, Any]) -> None:
    outcome = outcomes[name]
    assert outcome.get("error") == "DataError", outcome
    assert [part for part in CASES[name].says if part not in outcome["says"]] == [], outcome["says"]


class InvalidArgumentError(Exception):
    """An error with the same name as TensorFlow's error."""


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ValueError("assertion failed: [column 'x' is odd] [3]"), id="an error of Python"),
        pytest.param(
            InvalidArgumentError("assertion failed: [my own words] [3]"), id="an assertion of the user"
        ),
        pytest.param(
            InvalidArgumentError("Matrix size-incompatible: In[0]: [2,3]"), id="an error of a model"
        ),
    ],
)
def test_error_that_is_not_about_data_is_not_changed(error: Exception) -> None:
    assert as_data_error(error) is error


def test_error_of_an_image_has_the_name_of_its_column() -> None:
    name = 'größe / "x"'
    error = as_data_error(
        InvalidArgumentError(f"... [[{{{{node {image_scope(name)}/map/while/DecodeImage}}}}]]")
    )
    assert isinstance(error, DataError)
    assert f"column {name!r}" in str(error)
