"""The networks for tables of ``models/mlp.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models import mlp

ROWS = 40
NUMBERS = np.random.default_rng(0)
FOUND: dict[str, Any] = {
    "mean": {"a": 2.0, "b": 20.0, "price": 10.0},
    "std": {"a": 3.0, "b": 12.0, "price": 5.0},
    "vocabulary": {"color": ["red", "blue"], "town": ["x", "y"], "floor": [3, 5]},
}
TABLE: dict[str, Any] = {
    "numbers": ["a", "b"],
    "categories": {"color": "one_hot", "town": "embedding", "street": "hashing", "floor": "embedding"},
    "bins": 7,
    "embedding": 3,
    "hidden": [6],
    "dropout": 0.0,
    **FOUND,
}
LABELS = {
    "price": NUMBERS.normal(10, 5, ROWS).astype("float32"),
    "grade": np.arange(ROWS) % 3,
    "sold": np.arange(ROWS) % 2,
}


def columns() -> dict[str, Any]:
    """Return columns as they are fed. Some values are in no vocabulary."""
    return {
        "a": keras.ops.convert_to_tensor(NUMBERS.normal(2, 3, ROWS)),
        "b": keras.ops.convert_to_tensor(np.arange(ROWS)),
        "color": keras.ops.convert_to_tensor(["red", "blue", "pink", "red"] * (ROWS // 4), "string"),
        "town": keras.ops.convert_to_tensor(["x", "z"] * (ROWS // 2), "string"),
        "street": keras.ops.convert_to_tensor([f"street {i}" for i in range(ROWS)], "string"),
        "floor": keras.ops.convert_to_tensor(np.arange(ROWS) % 7),
    }


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        ({"price": "number"}, (ROWS, 1)),
        ({"sold": "yes"}, (ROWS, 1)),
        ({"grade": 3}, (ROWS, 3)),
        ({}, (ROWS, 1)),
    ],
    ids=["a number", "yes or no", "classes", "two classes"],
)
def test_model_when_trained_a_step_and_saved_predicts_the_same(
    labels: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = mlp.build_model({**TABLE, "labels": labels})
    x, y = columns(), LABELS[next(iter(labels), "sold")]
    model.run_eagerly = True
    assert np.isfinite(model.train_on_batch(x, y)[0])
    said = model(x).numpy()
    model.save(tmp_path / "model.keras")
    assert said.shape == shape
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(x), said, rtol=1e-5)


def test_model_when_labels_are_several_learns_each_in_its_own_units() -> None:
    model = mlp.build_model(
        {**TABLE, "labels": {"price": "number", "grade": 3, "sold": "yes"}, "learning_rate": 0.05}
    )
    x = columns()
    labels = {**LABELS, "price": 10 + 5 * np.asarray(x["a"], "float32")}
    model.run_eagerly = True
    before, *_, after = (
        model.train_on_batch(x, labels, return_dict=True) | {"step": step} for step in range(60)
    )
    assert after["price_mae"] < before["price_mae"] / 2
    assert after["sold_loss"] < before["sold_loss"]
    assert after["grade_loss"] < before["grade_loss"]
    assert {"price_rmse", "price_r2", "grade_accuracy", "sold_auc"} <= set(after)
    assert float(np.mean(model(x)["price"])) == pytest.approx(float(np.mean(labels["price"])), rel=0.5)


def test_model_when_there_is_one_column_takes_it_alone(tmp_path: Path) -> None:
    model = mlp.build_model({"numbers": ["a"], "labels": {"price": "number"}})
    assert model.input_shape == (None,)
    mlp.draw(model, np.arange(20.0), np.arange(20.0), str(tmp_path))
    assert (tmp_path / "columns.png").read_bytes().startswith(b"\x89PNG")


def test_adapt_on_spark_finds_means_deviations_and_vocabularies(spark: Any) -> None:
    rows = [(float(i), ("u", "v", "v")[i % 3], i % 2, f"k{i}", 10.0 * i) for i in range(30)]
    df = spark.createDataFrame(
        rows, "`my number` DOUBLE, c STRING, n LONG, h STRING, price FLOAT"
    ).repartition(3)
    params = {
        "numbers": ["my number"],
        "categories": {"c": "one_hot", "n": "embedding", "h": "hashing"},
        "labels": {"price": "number"},
    }

    found = mlp.adapt(params, df)

    assert found["mean"] == pytest.approx({"my number": 14.5, "price": 145.0})
    assert found["std"]["price"] == pytest.approx(np.std(np.arange(0, 300, 10)))
    assert found["vocabulary"] == {"c": ["v", "u"], "n": [0, 1]}
    assert mlp.build_model(found).compiled
    assert mlp.adapt({**params, "mean": {"my number": 1.0}}, df)["mean"]["my number"] == 1.0
    with pytest.raises(ValueError, match="hashing takes texts: cast 'n' to string"):
        mlp.adapt({"categories": {"n": "hashing"}}, df)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "a table needs columns: name them in numbers or categories"),
        ({"numbers": "a"}, "numbers must be a list of columns"),
        (
            {"categories": {"c": "embed"}},
            "categories must be columns, each with one of embedding, one_hot, hashing",
        ),
        ({"categories": {"c": "one_hot"}}, r"categories need a vocabulary: call adapt\(params, df\)"),
        (
            {"numbers": ["a"], "categories": {"a": "hashing"}},
            "among the numbers or among the categories, not both",
        ),
        (
            {"numbers": ["a"], "labels": {"y": 1}},
            "labels must be columns, each with number, yes or a number of classes",
        ),
        ({"numbers": ["a"], "std": {"a": 0}}, "std must be columns, each with a number above 0"),
        ({"numbers": ["a"], "hidden": [0]}, "hidden must be a list of whole numbers above 0"),
        ({"number": ["a"]}, "unknown model parameter 'number': did you mean 'numbers'"),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        mlp.build_model(params)


def test_callbacks_when_decay_is_given_reduce_the_learning_rate() -> None:
    assert mlp.callbacks({"numbers": ["a"]}) == []
    (schedule,) = mlp.callbacks({"numbers": ["a"], "decay": 0.5})
    assert [schedule.schedule(epoch, 0.1) for epoch in (0, 1)] == [0.1, 0.05]


def test_importance_when_one_column_decides_names_it() -> None:
    x = {
        "a": keras.ops.convert_to_tensor(NUMBERS.normal(size=200)),
        "b": keras.ops.convert_to_tensor(NUMBERS.normal(size=200)),
    }
    y = 3 * np.asarray(x["a"], "float32")
    model = mlp.build_model(
        {
            "numbers": ["a", "b"],
            "labels": {"price": "number"},
            "hidden": [4],
            "dropout": 0.0,
            "learning_rate": 0.05,
        }
    )
    model.run_eagerly = True
    for _ in range(40):
        model.train_on_batch(x, y)
    times = mlp.importance(model, x, y)
    assert times["a"] > 2 * times["b"]
