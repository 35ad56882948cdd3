"""A model with five inputs and two outputs; executors find it by name, and only trainers import TensorFlow."""

from __future__ import annotations

from typing import Any

WORDS = 16
TOKENS = 10


def two_outputs(params: dict[str, Any]) -> Any:
    """Combine a picture, a vector, hashed words, a ragged list of tokens and a date; predict a class and a number."""
    import keras
    import tensorflow as tf

    class MeanEmbedding(keras.layers.Layer):
        """Average the embeddings of a ragged row; Keras builds layers with a dense placeholder."""

        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(TOKENS, 4))

        def call(self, tokens: Any) -> Any:
            if not isinstance(tokens, tf.RaggedTensor):
                tokens = tf.RaggedTensor.from_tensor(tokens)
            rows = tokens.with_flat_values(tf.gather(self.table, tokens.flat_values))
            return tf.math.divide_no_nan(
                tf.reduce_sum(rows, axis=1), tf.cast(tokens.row_lengths(), tf.float32)[:, None]
            )

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], 4)

    inputs = {
        "picture": keras.Input((4, 6, 3), name="picture"),
        "vector": keras.Input((3,), name="vector"),
        "words": keras.Input((None,), dtype="int64", name="words"),
        "tokens": keras.Input((None,), dtype="int32", ragged=True, name="tokens"),
        "years": keras.Input((1,), name="years"),
    }
    parts = [
        keras.layers.Flatten()(inputs["picture"]),
        inputs["vector"],
        keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(WORDS, 4)(inputs["words"])),
        MeanEmbedding()(inputs["tokens"]),
        inputs["years"],
    ]
    joined = keras.layers.Concatenate()(parts)
    outputs = {
        "kind": keras.layers.Dense(2, activation="softmax", name="kind")(joined),
        "size": keras.layers.Dense(1, name="size")(joined),
    }
    model = keras.Model(inputs, outputs if params["outputs"] == "dict" else list(outputs.values()))
    model.compile(
        keras.optimizers.SGD(0.01),
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    return model


def features(batch: dict[str, Any]) -> dict[str, Any]:
    """Convert words to numbers and days to years since 2020; do not change the other columns."""
    import tensorflow as tf

    # Pad to one width: in a batch without a long row, the mean over the padding would be different.
    words = tf.strings.to_hash_bucket_fast(batch.pop("words"), WORDS).to_tensor(shape=(None, 3))
    years = tf.cast(batch.pop("day"), tf.float32) / 365.25 - 50
    return {**batch, "words": words, "years": years[:, None]}


def constant_in_the_first_epoch(params: Any) -> list[Any]:
    """Learn nothing in the first epoch, so that its training metrics are those of an evaluation."""
    import keras

    del params
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 1e-30 if epoch == 0 else 0.02)]
