"""`tfspark.predict`: add the predictions of a trained model to a DataFrame. Called on the driver."""

from __future__ import annotations

import difflib
import functools
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.driver_python import use_own_python
from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.described import (
    MODULE,
    Described,
    Signature,
    read_signature,
    signature_of_function,
    signature_of_keras,
)
from tfspark.inference.model_files import KERAS, ModelFiles, load, of_keras, read_model
from tfspark.inference.outputs import Output
from tfspark.inference.placed import FILE, ROW, PredictPlacesTask, with_places
from tfspark.inference.predictor import BATCH_ROWS, Predictor
from tfspark.inference.records import predicted_records
from tfspark.inference.values import spark_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

INVALID = ("error", "skip", "keep")
PREDICTED = "__tfspark_predicted"


@dataclass(frozen=True)
class TrainedModel:
    """A model that was found on disk.

    Attributes:
        files: the files that are sent to the workers.
        signature: its inputs and outputs; None: unknown until the model is loaded.
        described: its columns and classes; None: unknown.
    """

    files: ModelFiles
    signature: Signature | None = None
    described: Described | None = None


def predict(
    df: DataFrame,
    model: Any,
    *,
    features: Sequence[str | Column] | str | Column | None = None,
    output: str = "prediction",
    probability: str | None = "probability",
    handle_invalid: str = "error",
    batch_rows: int = BATCH_ROWS,
    signature: str = "serving_default",
) -> DataFrame:
    """Add a model's predictions to the rows of a DataFrame.

    Columns, order and number of rows do not change. Each of Spark's Python workers loads the model once.

    Args:
        df: the rows.
        model: a run directory of ``tfspark run``, a ``.keras`` file, the directory of a SavedModel, or a model of
            `tfspark.ml`.
        features: the columns that the model reads; None: the columns it was trained on, or columns named like its
            inputs.
        output: name of the prediction column. For a classifier with known classes it has the original labels. For a
            model with several outputs, there is a column for each: ``prediction_<name>``.
        probability: name of the column with each class's probability, an array in the order of the classes; None: no
            such column.
        handle_invalid: ``error``: a null in a feature is an error; ``skip``: such rows are dropped; ``keep``: their
            prediction is null.
        batch_rows: maximum rows per call of the model.
        signature: for a SavedModel, the function to call.

    Raises:
        ConfigError: there is no such model, a column is missing, or a new column's name already exists.
    """
    _check_invalid(handle_invalid)
    if hasattr(model, "transform"):
        predicted: DataFrame = model.transform(df)
        return predicted
    found = find_model(model, signature)
    use_own_python(df.sparkSession)
    if found.signature is None:
        found = replace(found, signature=describe(df, found.files))
    columns = _columns(df, found, features)
    described = found.described
    if described is not None and described.classes and not described.is_multi_label:
        outputs = _class_outputs(described.classes, output, probability)
    else:
        assert found.signature is not None
        outputs = value_outputs(found.signature, output)
    return apply(df, Predictor(found.files, columns, outputs, handle_invalid, batch_rows))


def apply(df: DataFrame, predictor: Predictor) -> DataFrame:
    """Add a predictor's columns to a DataFrame.

    Raises:
        ConfigError: a column is missing, or a new column's name already exists.
    """
    fields = df.schema.fields
    names = [field.name for field in fields if field.name not in predictor.hidden]
    for name in (output.column for output in predictor.outputs):
        if name.lower() in {known.lower() for known in names}:
            raise ConfigError(
                f"expected no column {name!r} in the data, there is one, and the prediction would be called so, too; "
                "drop it, or choose another name for the prediction (predictionCol, output=, --output-column)"
            )
    use_own_python(df.sparkSession)
    records = predicted_records(df, predictor, _schema(df, predictor))
    if records is not None:
        return records
    placed = with_places(df, predictor)
    # By position: names may be expressions, or differ only in case.
    names = [f"column_{place}" for place in range(len(fields))]
    by_place = df.toDF(*names) if placed is None else placed[0].toDF(*names, FILE, ROW)
    columns = [by_place[name] for name in names]
    if placed is None:
        read = [dict(zip(df.columns, columns, strict=True))[name] for name in predictor.read]
        task = PredictTask(predictor)
        function = _function(predictor, task.of_one if len(read) == 1 else task.of_several)
    else:
        read = [by_place[FILE], by_place[ROW]]
        function = _function(predictor, PredictPlacesTask(predictor, placed[1]).of_places)
    if predictor.handle_invalid == "skip":
        by_place = by_place.where(functools.reduce(operator.and_, [part.isNotNull() for part in read]))
    predicted = by_place.withColumn(PREDICTED, function(*read))
    made = [
        predicted[PREDICTED].getField(f"_{place}").alias(output.column)
        for place, output in enumerate(predictor.outputs)
    ]
    kept = [
        column.alias(field.name, metadata=field.metadata)
        for column, field in zip(columns, fields, strict=True)
        if field.name not in predictor.hidden
    ]
    return predicted.select(*kept, *made)


def _schema(df: DataFrame, predictor: Predictor) -> StructType:
    """Return the columns that are kept, then those that are computed."""
    from pyspark.sql.types import StructField, StructType

    kept = [field for field in df.schema.fields if field.name not in predictor.hidden]
    return StructType([*kept, *(StructField(out.column, _data_type(out.type)) for out in predictor.outputs)])


def _function(predictor: Predictor, predicted: Any) -> Any:
    """Return a Spark function to a struct of predictions, from the columns that `predicted` takes.

    The other columns do not leave the JVM. The function is marked as not deterministic: Spark would otherwise move it,
    or call it twice where a filter uses its result.
    """
    from pyspark.sql.functions import arrow_udf
    from pyspark.sql.types import StructField, StructType

    kind = StructType(
        [StructField(f"_{place}", _data_type(output.type)) for place, output in enumerate(predictor.outputs)]
    )
    return arrow_udf(predicted, kind).asNondeterministic()


@dataclass(frozen=True)
class PredictTask:
    """Predicts the rows of a partition. Runs in a Python worker of Spark.

    Attributes:
        predictor: the model, the columns it reads and the columns it computes.
    """

    predictor: Predictor

    def of_one(self, batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Yield a struct for each row of one column."""
        yield from self.of_several((column,) for column in batches)

    def of_several(self, batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """Yield a struct for each row of several columns."""
        names = list(self.predictor.read)
        yield from self.predictor.predicted(
            pa.RecordBatch.from_arrays(list(columns), names) for columns in batches
        )


def _data_type(name: str) -> Any:
    """Return the Spark type of a DDL string; ``vector`` is that of Spark ML."""
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import StructType

    return VectorUDT() if name == "vector" else StructType.fromDDL(f"value {name}").fields[0].dataType


def _check_invalid(given: str) -> str:
    """Return how nulls are handled; reject unknown values.

    Raises:
        ConfigError: the value is not one of the three.
    """
    if given not in INVALID:
        near = difflib.get_close_matches(str(given), INVALID, 1)
        hint = f"did you mean {near[0]!r}?" if near else "use error"
        raise ConfigError(f"expected handleInvalid to be one of {', '.join(INVALID)}, got {given!r}; {hint}")
    return given


# --- the model ---------------------------------------------------------------------------------------


def find_model(place: Any, signature: str = "serving_default") -> TrainedModel:
    """Find a model on the driver's disk.

    Raises:
        ConfigError: there is none.
    """
    path = Path(str(place).removeprefix("file:"))
    if (path / "config.yaml").is_file():
        return _of_run(path)
    files = read_model(path, signature)
    return TrainedModel(files, read_signature(path.parent) if files.kind == KERAS else None)


def _of_run(run: Path) -> TrainedModel:
    export = run / "export"
    file = export / "model.keras"
    if not file.is_file():
        raise ConfigError(
            f"expected an exported model at {file}, there is none: the run has not ended, or exports other formats; "
            "run it with export.formats=[keras], or name a checkpoint (checkpoints/epoch-....keras)"
        )
    module = export / MODULE
    modules = ((str(module), module.read_text(encoding="utf-8")),) if module.is_file() else ()
    described = Described.read(export)
    return TrainedModel(of_keras(file.read_bytes(), modules), read_signature(export), described)


_signatures: dict[tuple[str, str], Signature] = {}
"""Signatures of models that were described before: it takes a Spark job, and programs predict in loops."""


def describe(df: DataFrame, model: ModelFiles) -> Signature:
    """Let a Python worker of Spark read a model's inputs and outputs; the driver has no TensorFlow.

    Raises:
        ConfigError: the model does not declare them.
    """
    key = model.digest, model.signature
    if key not in _signatures:
        rows = df.sparkSession.range(0, 1, 1, 1).mapInArrow(DescribeTask(model), "signature string").collect()
        _signatures[key] = Signature.from_json(json.loads(rows[0][0]))
    signature = _signatures[key]
    if not signature.outputs:
        raise ConfigError(
            "expected a model that knows its inputs and outputs, got a subclass of keras.Model without them; export "
            "it as a SavedModel (model.export), or as a functional model"
        )
    return signature


@dataclass(frozen=True)
class DescribeTask:
    """Return a model's inputs and outputs. Runs in a Python worker of Spark.

    Attributes:
        model: the files.
    """

    model: ModelFiles

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row: the signature as JSON."""
        for _ in batches:
            pass  # Read all rows: otherwise Spark ends this worker, with its TensorFlow.
        loaded = load(self.model)
        found = (
            signature_of_keras(loaded) if self.model.kind == KERAS else signature_of_function(loaded)
        ).to_json()
        yield pa.record_batch([[json.dumps(found)]], ["signature"])


# --- columns -----------------------------------------------------------------------------------------


def _columns(
    df: DataFrame, found: TrainedModel, given: Sequence[str | Column] | str | Column | None
) -> Columns:
    signature = found.signature
    assert signature is not None
    if given is not None:
        items = [given] if isinstance(given, str | Column) else list(given)
        columns = Columns(tuple(_named(items, signature)))
    elif found.described is not None:
        columns = found.described.features
    else:
        names = [tensor.name for tensor in signature.inputs]
        if len(names) == 1 and names[0] not in df.columns and len(df.columns) == 1:
            names = list(df.columns)
        missing = [name for name in names if name not in df.columns]
        if missing:
            raise ConfigError(
                f"expected columns called as the model's inputs, {names}, the data has {df.columns}; name the feature "
                "columns (features=, --features)"
            )
        columns = Columns(
            tuple(_as_column(tensor, name) for tensor, name in zip(signature.inputs, names, strict=True))
        )
    check_columns(columns, df.columns)
    return columns


def _named(items: Sequence[str | Column], signature: Signature) -> Iterator[Column]:
    """Give columns the shapes of the inputs with the same names, or otherwise of those in the same positions."""
    by_name = {tensor.name: tensor for tensor in signature.inputs}
    by_place = len(items) == len(signature.inputs)
    for place, item in enumerate(items):
        if isinstance(item, Column):
            yield item
            continue
        tensor = by_name.get(item, signature.inputs[place] if by_place else None)
        yield Column(item) if tensor is None else _as_column(tensor, item)


def _as_column(tensor: Any, name: str) -> Column:
    shape = tensor.shape if tensor.shape and None not in tensor.shape else None
    return Column(name, shape=shape)


def _class_outputs(classes: tuple[Any, ...], output: str, probability: str | None) -> tuple[Output, ...]:
    """Return the columns of a classifier: the label, and each class's probability as an array."""
    kind = "string" if isinstance(classes[0], str) else "bigint"
    made = [Output(output, "class", kind, classes=tuple(classes))]
    if probability is not None:
        made.append(Output(probability, "chances", "array<double>"))
    return tuple(made)


def value_outputs(signature: Signature, output: str) -> tuple[Output, ...]:
    """Return a column for each output of a model."""
    several = len(signature.outputs) > 1
    made = []
    for tensor in signature.outputs:
        is_text = tensor.dtype == "string"
        depth = 0 if tensor.shape == (1,) else len(tensor.shape)
        kind = "array<" * depth + "string" + ">" * depth if is_text else spark_type(tensor.dtype, depth)
        column = f"{output}_{tensor.name}" if several else output
        made.append(Output(column, "text" if is_text else "value", kind, tensor.name))
    return tuple(made)
