"""TensorFlowOnSpark's ``compat``: functions that differed between versions of TensorFlow. Used in the trainer."""

from __future__ import annotations

from typing import Any


def export_saved_model(model: Any, export_dir: str, is_chief: bool = False) -> None:
    """Write a Keras model as a SavedModel on the chief; other nodes do nothing.

    Args:
        model: a built model.
        export_dir: directory, on storage that the programs that load the model can read.
        is_chief: whether this node writes, for example ``ctx.is_chief``.
    """
    if is_chief:
        write_saved_model(model, export_dir)


def write_saved_model(model: Any, export_dir: str) -> None:
    """Write a SavedModel whose signature ``serving_default`` has the tensor names of Keras 2.

    Inputs have the names of the model's inputs; the input of a `Sequential` has that of its first layer with
    ``_input``. Outputs have the names of the layers that compute them. So programs that call the signature by these
    names still work.
    """
    import keras
    import tensorflow as tf

    inputs = dict(zip(_input_names(model), model.inputs, strict=True))
    outputs = _output_names(model)

    def serve(**tensors: Any) -> dict[str, Any]:
        given = [tensors[name] for name in inputs]
        results = model(given[0] if len(given) == 1 else given, training=False)
        return dict(zip(outputs, keras.tree.flatten(results), strict=True))

    signature = {name: tf.TensorSpec(_batched(x.shape), x.dtype, name=name) for name, x in inputs.items()}
    function = tf.function(serve)
    function.get_concrete_function(**signature)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", function)
    archive.write_out(export_dir, verbose=False)


def _batched(shape: Any) -> tuple[int | None, ...]:
    return (None, *shape[1:])


def _input_names(model: Any) -> list[str]:
    import keras

    if isinstance(model, keras.Sequential):
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        return [f"{layers[0].name}_input"]
    return [tensor.name for tensor in model.inputs]


def _output_names(model: Any) -> list[str]:
    return [tensor._keras_history.operation.name for tensor in model.outputs]


def disable_auto_shard(options: Any) -> None:
    """Prevent ``tf.distribute`` from dividing a dataset among the workers: each gets its own rows from the feed.

    Args:
        options: a ``tf.data.Options``.
    """
    import tensorflow as tf

    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF


def is_gpu_available() -> bool:
    """Return whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
