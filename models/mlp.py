"""Networks for tables: columns of numbers and of categories, and one label or several.

A label is a number, a yes or no, or one of several classes. A model module: tfspark calls `adapt(params, df)` on the
driver and `build_model(params)` in every trainer. It needs no Spark, so it can also be run as a program, in the root of
the repository:

    python -m models.mlp                    # the price of a diamond
    python -m models.mlp --cut              # how well it is cut: one of five classes
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfspark.parameters import (
    above_0,
    are,
    choice,
    flag,
    fraction,
    is_above_0,
    is_number,
    is_size,
    is_text,
    is_whole,
    named,
    read_params,
    several,
    whole,
)

Tensor = keras.KerasTensor

# The data that `main` trains on.
DIAMONDS = Path("data/diamonds/stones")

ENCODINGS = ("embedding", "one_hot", "hashing")


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        numbers: the columns of numbers.
        categories: column of texts or whole numbers -> how its values are encoded: `embedding`: a learned vector for
            each value; `one_hot`; `hashing`: an embedding that texts with the same hash share, for columns with very
            many values.
        labels: column -> `number`, `yes` (a label of 0 or 1), or its number of classes; several labels are learned
            together. Empty: one label of `num_classes` classes.
        num_classes: classes of the label, 2 or more, if `labels` is empty.
        mean: column -> its mean; `adapt` computes it, and the next two.
        std: column -> its standard deviation.
        vocabulary: column -> its values by falling frequency; all other values together count as one more.
        vocabulary_size: maximum number of values of a column with their own embedding, 1 or more.
        bins: number of hash values, 2 or more.
        embedding: size of an embedding, 1 or more.
        hidden: widths of the layers, each 1 or more.
        skip: add a linear model of the columns to the network (as in Wide & Deep, Cheng et al., 2016).
        loss: for numbers: `squared`, or `absolute`, which depends less on a few large errors.
        dropout: fraction of activations dropped after each layer, in [0, 1).
        learning_rate: step size of Adam in the first epoch, above 0.
        decay: the step size is multiplied by this after each epoch, above 0.
    """

    numbers: tuple[str, ...] = several((), "a list of columns", is_text)
    categories: Mapping[str, str] = named(
        f"columns, each with one of {', '.join(ENCODINGS)}", lambda encoding: encoding in ENCODINGS
    )
    labels: Mapping[str, Any] = named(
        "columns, each with number, yes or a number of classes, 2 or more",
        lambda kind: kind in ("number", "yes") or is_whole(kind, 2),
    )
    num_classes: int = whole(2, 2)
    mean: Mapping[str, float] = named("columns, each with a number", is_number)
    std: Mapping[str, float] = named("columns, each with a number above 0", is_above_0)
    vocabulary: Mapping[str, Sequence[Any]] = named(
        "columns, each with a list of texts or of whole numbers",
        lambda known: are(known, is_text) or are(known, lambda value: is_whole(value, -(2**63))),
    )
    vocabulary_size: int = whole(1000, 1)
    bins: int = whole(1000, 2)
    embedding: int = whole(8, 1)
    hidden: tuple[int, ...] = several((128, 64), "a list of whole numbers above 0", is_size)
    skip: bool = flag(True)
    loss: str = choice("squared", ["squared", "absolute"])
    dropout: float = fraction(0.1)
    learning_rate: float = above_0(1e-3)
    decay: float = above_0(1.0)

    def __post_init__(self) -> None:
        """Reject values that contradict each other.

        Raises:
            ValueError: names the missing parameter.
        """
        looked_up = [name for name, encoding in self.categories.items() if encoding != "hashing"]
        for holds, problem in [
            (self.numbers or self.categories, "a table needs columns: name them in numbers or categories"),
            (
                not set(self.numbers) & set(self.categories),
                "a column is among the numbers or among the categories, not both",
            ),
            (
                all(self.vocabulary.get(name) for name in looked_up),
                "categories need a vocabulary: call adapt(params, df)",
            ),
        ]:
            if not holds:
                raise ValueError(
                    f"{problem}. Received: numbers={self.numbers!r}, categories={self.categories!r}, "
                    f"vocabulary of {sorted(self.vocabulary)!r}"
                )

    @property
    def of_labels(self) -> Mapping[str, Any]:
        """Label -> its kind; a single label without a column name is called `class`."""
        return self.labels or {"class": self.num_classes}


def adapt(params: Mapping[str, Any], df: Any) -> dict[str, Any]:
    """Compute mean and deviation of the numbers and the values of the categories. Runs on the driver.

    Spark computes everything over all rows; only the result comes to the driver. Values in `params` are not changed.

    Args:
        params: as for `build_model`.
        df: the training rows, a Spark DataFrame.

    Raises:
        ValueError: a column for hashing is not text.
    """
    encodings = params.get("categories", {})
    labels = [name for name, kind in params.get("labels", {}).items() if kind == "number"]
    found: dict[str, dict[str, Any]] = {"mean": {}, "std": {}, "vocabulary": {}}
    numbers = [*params.get("numbers", ()), *labels]
    if numbers:
        asked = [f"{of}({_quoted(name)})" for name in numbers for of in ("avg", "stddev_pop")]
        values = df.selectExpr(*asked).first()
        for name, mean, deviation in zip(numbers, values[::2], values[1::2], strict=True):
            found["mean"][name], found["std"][name] = float(mean), float(deviation) or 1.0
    for name, encoding in encodings.items():
        if encoding != "hashing":
            size = params.get("vocabulary_size", Params.vocabulary_size)
            counts = df.selectExpr(f"{_quoted(name)} AS value").groupBy("value").count()
            rows = counts.sort("count", "value", ascending=[False, True]).limit(size).collect()
            found["vocabulary"][name] = [row[0] for row in rows]
        elif dict(df.dtypes)[name] != "string":
            kind = dict(df.dtypes)[name]
            raise ValueError(
                f"hashing takes texts: cast {name!r} to string, or use embedding. Received: {kind}"
            )
    return {**params, **{key: {**values, **params.get(key, {})} for key, values in found.items()}}


def _quoted(name: str) -> str:
    """Return a column's name quoted for Spark SQL."""
    return "`" + name.replace("`", "``") + "`"


def build_model(params: Mapping[str, Any] | None = None) -> keras.Model:
    """Build and compile a network for a table.

    Input shape: a dict by column, each `(batch,)`; for a single column only its tensor.
    Output shape: for a number `(batch, 1)`, in the units of the label; for yes or no, or two classes, `(batch, 1)`,
    the probability of 1; for more classes `(batch, classes)` probabilities. Several labels: a dict by column.

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or contradicts another.
    """
    p = read_params(Params, params or {})
    inputs, x = columns(p)  # (batch, width of all columns)
    hidden = x
    for units in p.hidden:
        hidden = layers.Dropout(p.dropout)(layers.Dense(units, activation="relu")(hidden))
    outputs = {name: output(name, kind, hidden, x, p) for name, kind in p.of_labels.items()}
    loss = {name: loss_of(kind, p) for name, kind in p.of_labels.items()}
    metrics = {name: metrics_of(kind) for name, kind in p.of_labels.items()}
    weights = {name: weight_of(name, kind, p) for name, kind in p.of_labels.items()}
    optimizer = keras.optimizers.Adam(p.learning_rate)
    if len(outputs) > 1:
        model = keras.Model(inputs, outputs, name="mlp")
        model.compile(optimizer, loss, metrics=metrics, loss_weights=weights)
    else:
        (name,) = outputs
        model = keras.Model(inputs, outputs[name], name="mlp")
        model.compile(optimizer, loss[name], metrics=metrics[name])
    return model


def callbacks(params: Mapping[str, Any] | None = None) -> list[keras.callbacks.Callback]:
    """Return a callback that lowers the learning rate after each epoch."""
    decay = (params or {}).get("decay", Params.decay)
    if decay == 1:
        return []
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * decay if epoch else rate)]


def columns(p: Params) -> tuple[Any, Tensor]:
    """Return the model's inputs, and all columns concatenated."""
    inputs: dict[str, Tensor] = {name: keras.Input((), name=name) for name in p.numbers}
    parts = []
    if p.numbers:
        x = keras.ops.stack([inputs[name] for name in p.numbers], axis=-1)  # (batch, numbers)
        mean = [p.mean.get(name, 0.0) for name in p.numbers]
        variance = [p.std.get(name, 1.0) ** 2 for name in p.numbers]
        parts.append(layers.Normalization(mean=mean, variance=variance)(x))
    for name, encoding in p.categories.items():
        has_texts = encoding == "hashing" or are(p.vocabulary[name], is_text)
        inputs[name] = keras.Input((), dtype="string" if has_texts else "int64", name=name)
        parts.append(encoded(inputs[name], name, encoding, p))
    x = layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    return (inputs if len(inputs) > 1 else next(iter(inputs.values()))), x


def encoded(x: Tensor, name: str, encoding: str, p: Params) -> Tensor:
    """Encode a category: `(batch,)` -> `(batch, embedding)`, or `(batch, values + 1)` for one-hot."""
    if encoding == "hashing":
        return layers.Embedding(p.bins, p.embedding)(layers.Hashing(p.bins)(x))
    known = list(p.vocabulary[name])[: p.vocabulary_size]
    lookup = layers.StringLookup if are(known, is_text) else layers.IntegerLookup
    if encoding == "one_hot":
        return lookup(vocabulary=known, output_mode="one_hot")(x)
    return layers.Embedding(len(known) + 1, p.embedding)(lookup(vocabulary=known)(x))


def output(name: str, kind: Any, hidden: Tensor, linear: Tensor, p: Params) -> Tensor:
    """Return the output for a label."""
    units = kind if is_whole(kind, 3) else 1
    scores = layers.Dense(units)(hidden)
    if p.skip:
        scores = layers.Add()([scores, layers.Dense(units, use_bias=False)(linear)])
    if kind == "number":
        return layers.Rescaling(p.std.get(name, 1.0), p.mean.get(name, 0.0), dtype="float32", name=name)(
            scores
        )
    return layers.Activation("softmax" if units > 1 else "sigmoid", dtype="float32", name=name)(scores)


def loss_of(kind: Any, p: Params) -> str:
    """Return the loss of a label."""
    if kind == "number":
        return "mean_squared_error" if p.loss == "squared" else "mean_absolute_error"
    return "sparse_categorical_crossentropy" if is_whole(kind, 3) else "binary_crossentropy"


def weight_of(name: str, kind: Any, p: Params) -> float:
    """Return the weight of a label's loss: for numbers by their deviation, so that units do not matter."""
    if kind != "number":
        return 1.0
    return p.std.get(name, 1.0) ** (-2 if p.loss == "squared" else -1)


def metrics_of(kind: Any) -> list[Any]:
    """Return the metrics of a label."""
    if kind == "number":
        return [
            keras.metrics.MeanAbsoluteError(name="mae"),
            keras.metrics.RootMeanSquaredError(name="rmse"),
            keras.metrics.R2Score(name="r2"),
        ]
    return ["accuracy"] if is_whole(kind, 3) else ["accuracy", keras.metrics.AUC(name="auc")]


def importance(model: keras.Model, x: Any, y: Any, seed: int = 0) -> dict[str, float]:
    """Return by which factor the loss grows if a column's values are shuffled (Breiman, 2001).

    Args:
        model: a trained model of this module.
        x: a dict of tensors by column, or the tensor of a single one.
        y: the label, or a dict of labels.
        seed: of the shuffle.
    """
    import tensorflow as tf

    x = x if isinstance(x, Mapping) else {model.inputs[0].name: x}
    order = np.random.default_rng(seed).permutation(len(next(iter(x.values()))))
    changed = {name: {**x, name: tf.gather(values, order)} for name, values in x.items()}
    known, *losses = (
        float(model.compute_loss(part, y, model(part if len(part) > 1 else next(iter(part.values())))))
        for part in (x, *changed.values())
    )
    return {name: loss / max(known, 1e-12) for name, loss in zip(changed, losses, strict=True)}


def draw(model: keras.Model, x: Any, y: Any, directory: str) -> None:
    """Draw the importance of columns, and the predictions of labels that are numbers, as `columns.png`.

    Args:
        model: a trained model of this module.
        x: inputs of the model.
        y: their labels.
        directory: for the picture.
    """
    import tensorflow as tf
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = (tf.nest.map_structure(tf.constant, part) for part in (x, y))
    said = model(x)
    said = said if isinstance(said, Mapping) else {model.output_names[0]: said}
    truth = y if isinstance(y, Mapping) else dict.fromkeys(said, y)
    numbers = [name for name in said if isinstance(model.get_layer(name), layers.Rescaling)]
    figure = Figure(figsize=(5 * (1 + len(numbers)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, *others = figure.subplots(1, 1 + len(numbers), squeeze=False)[0]
    ranked = sorted(importance(model, x, y).items(), key=lambda item: item[1])
    axes.barh([name for name, _ in ranked], [times for _, times in ranked], color="#0072B2")
    axes.axvline(1, color="#999999", linewidth=1)
    axes.set_title("Loss with a column's values shuffled, in multiples", loc="left", fontsize=10)
    for cell, name in zip(others, numbers, strict=True):
        values, guesses = np.asarray(truth[name]).reshape(-1), np.asarray(said[name]).reshape(-1)
        ends = [min(values.min(), guesses.min()), max(values.max(), guesses.max())]
        cell.plot(ends, ends, color="#bbbbbb", linewidth=1)
        cell.scatter(values, guesses, s=8, color="#D55E00")
        mean_error = np.abs(values - guesses).mean()
        cell.set_title(f"{name}: mean error {mean_error:.4g} of {len(values)} rows", loc="left", fontsize=10)
        cell.set_xlabel("truth")
        cell.set_ylabel("said")
    figure.savefig(Path(directory, "columns.png"), dpi=120)


def main() -> None:
    """Train on diamonds and print the metrics on a random fifth of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=DIAMONDS, help="directory of TFRecord files")
    parser.add_argument("--cut", action="store_true", help="say how well a diamond is cut, not its price")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for columns.png")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"{args.data} is not there; run: scripts/prepare_data diamonds")
    keras.utils.set_random_seed(args.seed)
    params: dict[str, Any] = CUT if args.cut else PRICE
    rows = read_rows(args.data)
    if args.cut:
        rows["cut"] = np.array([CUTS.index(cut) for cut in rows["cut"]])
    order = np.random.default_rng(args.seed).permutation(len(rows["cut"]))
    train, test = np.split(order, [round(0.8 * len(order))])
    params = {**params, **statistics_of({name: values[train] for name, values in rows.items()}, params)}
    (x, y), (test_x, test_y) = (table_of(rows, part, params) for part in (train, test))
    model = build_model(params)
    model.fit(x, y, batch_size=128, epochs=args.epochs, verbose=2, callbacks=callbacks(params))
    results = model.evaluate(test_x, test_y, batch_size=512, verbose=0, return_dict=True)
    print(
        "test", ", ".join(f"{name} {value:.4f}" for name, value in results.items()), f"on {len(test_y)} rows"
    )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        shown = {name: values[:1000] for name, values in test_x.items()}
        draw(model, shown, test_y[:1000], str(args.pictures))


# The parameters that `main` trains with; the experiments in configs/ have the same.
CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
SIZES = ("carat", "depth", "table", "x", "y", "z")
PRICE: dict[str, Any] = {
    "numbers": SIZES,
    "categories": {"cut": "one_hot", "color": "embedding", "clarity": "embedding"},
    "labels": {"price": "number"},
    "loss": "absolute",
    "learning_rate": 0.003,
    "decay": 0.85,
}
CUT: dict[str, Any] = {
    "numbers": (*SIZES, "price"),
    "categories": {"color": "one_hot", "clarity": "one_hot"},
    "labels": {"cut": len(CUTS)},
    "learning_rate": 0.003,
    "decay": 0.85,
}


def read_rows(directory: Path) -> dict[str, np.ndarray]:
    """Read the columns of all diamonds, each `(rows,)`: float32, or str."""
    import tensorflow as tf

    kinds = {**dict.fromkeys((*SIZES, "price"), tf.float32), **dict.fromkeys(PRICE["categories"], tf.string)}
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    columns = tf.io.parse_example(list(tf.data.TFRecordDataset(files)), features)
    rows = {name: values.numpy() for name, values in columns.items()}
    texts = {name: np.array([v.decode() for v in rows[name]], object) for name in PRICE["categories"]}
    return {**rows, **texts}


def statistics_of(rows: Mapping[str, np.ndarray], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that `adapt` computes with Spark."""
    numbers = [*params["numbers"], *(name for name, kind in params["labels"].items() if kind == "number")]
    return {
        "mean": {name: float(rows[name].mean()) for name in numbers},
        "std": {name: float(rows[name].std()) or 1.0 for name in numbers},
        "vocabulary": {
            name: [value for value, _ in Counter(rows[name].tolist()).most_common()]
            for name in params["categories"]
        },
    }


def table_of(
    rows: Mapping[str, np.ndarray], chosen: np.ndarray, params: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the inputs of a model, and its label, for the chosen rows."""
    (label,) = params["labels"]
    x = {name: keras.ops.convert_to_tensor(rows[name][chosen]) for name in params["numbers"]}
    texts = {name: keras.ops.convert_to_tensor(rows[name][chosen], "string") for name in params["categories"]}
    return {**x, **texts}, rows[label][chosen]


if __name__ == "__main__":
    main()
