"""Programs for the clusters of `test_keras_features`. Plain Keras runs `weighted_model`, too."""

from __future__ import annotations

from typing import Any


def weighted_model(params: dict[str, Any]) -> Any:
    """One-hot classes, a clipped gradient, a metric that ignores weights and one that uses them."""
    import keras

    def normal(seed: int) -> Any:
        return keras.initializers.RandomNormal(stddev=0.5, seed=seed)

    layers = [
        keras.Input((4,)),
        keras.layers.Dense(5, "tanh", kernel_initializer=normal(1)),
        keras.layers.Dense(3, "softmax", kernel_initializer=normal(2)),
    ]
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.SGD(0.1, clipnorm=0.05),
        "categorical_crossentropy",
        metrics=[keras.metrics.F1Score(average="macro", name="f1")],
        weighted_metrics=["accuracy"],
    )
    return model


def writers(params: dict[str, Any]) -> list[Any]:
    """Return callbacks that write files to one folder."""
    import keras

    folder = params["folder"]
    return [
        keras.callbacks.ModelCheckpoint(f"{folder}/best.keras", monitor="val_loss", save_best_only=True),
        keras.callbacks.CSVLogger(f"{folder}/log.csv"),
        keras.callbacks.TensorBoard(f"{folder}/board"),
        keras.callbacks.BackupAndRestore(f"{folder}/backup", delete_checkpoint=False),
    ]


def fits_with_validation(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Fit twice, as users do; the second fit continues from the backup of the first."""
    import keras

    def fit(epochs: int) -> Any:
        with ctx.strategy.scope():
            model = weighted_model(args)
        history = model.fit(
            ctx.dataset(),
            epochs=epochs,
            validation_data=ctx.dataset("validation"),
            callbacks=[keras.callbacks.BackupAndRestore(args["folder"], delete_checkpoint=False)],
            verbose=0,
        ).history
        return history["loss"], history["val_loss"], int(model.optimizer.iterations.numpy())

    # The second worker has no access to the folder, as on another machine.
    args = args if ctx.is_chief else {"folder": ctx.scratch_dir + "/none"}
    return {"first": fit(1), "second": fit(2)}


def fits_by_steps(args: dict[str, int], ctx: Any) -> dict[str, Any]:
    """A `main_fun` whose weights count how often each of 64 rows was trained on."""
    import keras

    with ctx.strategy.scope():
        layers = [
            keras.Input((1,), dtype="int64"),
            keras.layers.Embedding(64, 1, embeddings_initializer="zeros"),
            keras.layers.Flatten(),
        ]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(16.0), lambda truth, guess: -guess[:, 0])
    fitted = model.fit(ctx.dataset(), epochs=args["epochs"], steps_per_epoch=args["steps"], verbose=0)
    return {
        "iterations": int(model.optimizer.iterations.numpy()),
        "epochs": len(fitted.history["loss"]),
        "counts": sorted({round(float(count), 2) for count in model.get_weights()[0][:, 0]}),
    }
