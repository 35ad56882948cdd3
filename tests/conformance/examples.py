"""Small models in the shapes of the code examples on keras.io, and rows for them.

Every function that makes rows takes their number, and returns features, labels and no weights. Initial weights are
drawn from a seed. Layers that draw random numbers while they train are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SEED = 4
SIZE = 8
"""Pixels on each side of an image."""
WORDS, STEPS = 12, 6


def _rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def classes_of_images(rows: int) -> Any:
    """Images, and one of three classes each."""
    x = _rng().normal(size=(rows, SIZE, SIZE, 1)).astype(np.float32)
    return x, x.mean((1, 2))[:, 0].argsort().argsort() % 3, None


def noisy_images(rows: int) -> Any:
    """Images with noise, and without."""
    rng = _rng()
    clean = (rng.random((rows, SIZE, SIZE, 1)) > 0.6).astype(np.float32)
    return clean + 0.3 * rng.normal(size=clean.shape).astype(np.float32), clean, None


def films(rows: int) -> Any:
    """Frames of pixels, and the last frame again as the label."""
    x = _rng().random((rows, 3, SIZE, SIZE, 1)).astype(np.float32)
    return x, x[:, -1], None


def reviews(rows: int) -> Any:
    """Numbers of words, and yes or no."""
    x = _rng().integers(1, WORDS, (rows, STEPS))
    return x, (x.sum(1, keepdims=True) > x.sum(1).mean()).astype(np.float32), None


def series(rows: int) -> Any:
    """Two values per step, and the next one."""
    x = _rng().normal(size=(rows, STEPS, 2)).astype(np.float32).cumsum(1)
    return x, x[:, -1, :1] + 0.1, None


def sentences(rows: int) -> Any:
    """A sentence, the beginning of its translation, and the whole translation."""
    x = _rng().integers(1, WORDS, (rows, STEPS))
    target = (x * 5) % WORDS
    begun = np.concatenate([np.zeros((rows, 1), x.dtype), target[:, :-1]], 1)
    return {"sentence": x, "begun": begun}, target, None


def pairs(rows: int) -> Any:
    """Two points, and whether they are far from each other."""
    left, right = _rng().normal(size=(2, rows, 4)).astype(np.float32)
    far = np.linalg.norm(left - right, axis=1, keepdims=True) > 2.5
    return {"left": left, "right": right}, far.astype(np.float32), None


def ratings(rows: int) -> Any:
    """A user, a film, and the rating."""
    rng = _rng()
    user, film = rng.integers(0, 9, (2, rows, 1))
    return {"user": user, "film": film}, ((user * film) % 5 / 5).astype(np.float32), None


def customers(rows: int) -> Any:
    """A number, two categories, and yes or no."""
    rng = _rng()
    age, job = rng.normal(size=(rows, 1)).astype(np.float32), rng.integers(0, 4, (rows, 1))
    town = rng.choice([89, 118, 47], (rows, 1))
    return {"age": age, "job": job, "town": town}, (age + job > 1.5).astype(np.float32), None


def _compiled(model: Any, loss: Any, rate: float = 0.01, metrics: Any = ("accuracy",), **options: Any) -> Any:
    import keras

    model.compile(keras.optimizers.Adam(rate, **options), loss, metrics=list(metrics))
    return model


def _seeded() -> Any:
    import keras

    keras.utils.set_random_seed(SEED)
    return keras


def convnet() -> Any:
    keras = _seeded()
    layers = [
        *(keras.Input((SIZE, SIZE, 1)), keras.layers.Conv2D(4, 3, activation="relu")),
        *(keras.layers.MaxPooling2D(2), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")),
    ]
    return _compiled(keras.Sequential(layers), "sparse_categorical_crossentropy")


def xception() -> Any:
    """Separable convolutions around which a shortcut leads."""
    keras = _seeded()
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 1))
    x = layers.GroupNormalization(2)(layers.Conv2D(4, 3, strides=2, padding="same")(image))
    y = layers.SeparableConv2D(4, 3, padding="same")(layers.Activation("relu")(x))
    y = layers.DepthwiseConv2D(3, padding="same")(layers.Activation("relu")(layers.LayerNormalization()(y)))
    y = layers.add([layers.MaxPooling2D(3, strides=2, padding="same")(y), layers.Conv2D(4, 1, strides=2)(x)])
    kind = layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(y))
    return _compiled(keras.Model(image, kind), "sparse_categorical_crossentropy")


def denoiser() -> Any:
    keras = _seeded()
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 1))
    x = layers.MaxPooling2D(2)(layers.Conv2D(4, 3, padding="same", activation="relu")(image))
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x)
    return _compiled(
        keras.Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)),
        "binary_crossentropy",
        metrics=["mae"],
    )


def next_frame() -> Any:
    keras = _seeded()
    frames = keras.Input((3, SIZE, SIZE, 1))
    x = keras.layers.ConvLSTM2D(2, 3, padding="same")(frames)
    return _compiled(
        keras.Model(frames, keras.layers.Conv2D(1, 3, padding="same")(x)), "mse", metrics=["mae"]
    )


def bidirectional() -> Any:
    keras = _seeded()
    layers = [
        *(keras.Input((None,), dtype="int64"), keras.layers.Embedding(WORDS, 4)),
        keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True)),
        *(keras.layers.Bidirectional(keras.layers.LSTM(3)), keras.layers.Dense(1, "sigmoid")),
    ]
    return _compiled(keras.Sequential(layers), "binary_crossentropy")


def _attended(keras: Any, x: Any, heads: int = 2) -> Any:
    """A block of a Transformer."""
    layers = keras.layers
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(heads, 2)(x, x))
    y = layers.Dense(x.shape[-1])(layers.Dense(8, "relu")(x))
    return layers.LayerNormalization()(x + y)


def transformer() -> Any:
    keras = _seeded()

    class Positions(keras.layers.Layer):  # type: ignore[misc]
        """Embeddings of words and of their positions."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = keras.layers.Embedding(WORDS, 4), keras.layers.Embedding(STEPS, 4)

        def call(self, x: Any) -> Any:
            return self.words(x) + self.places(keras.ops.arange(STEPS))

    words = keras.Input((STEPS,), dtype="int64")
    x = keras.layers.GlobalAveragePooling1D()(_attended(keras, Positions()(words)))
    model = keras.Model(words, keras.layers.Dense(1, "sigmoid")(x))
    # Adam takes a step of one size even where the gradient is only rounding, as for the keys' bias.
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    return model


def vision_transformer() -> Any:
    keras = _seeded()

    class Patches(keras.layers.Layer):  # type: ignore[misc]
        """Squares of an image, one after the other."""

        def call(self, images: Any) -> Any:
            patches = keras.ops.image.extract_patches(images, 4)
            return keras.ops.reshape(patches, (-1, 4, patches.shape[-1]))

    image = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Flatten()(_attended(keras, keras.layers.Dense(4)(Patches()(image))))
    kind = keras.layers.Dense(3, "softmax")(x)
    return _compiled(keras.Model(image, kind), "sparse_categorical_crossentropy", global_clipnorm=0.5)


def mixer() -> Any:
    """Dense layers over channels, and over places in turn."""
    keras = _seeded()
    layers = keras.layers
    words = keras.Input((STEPS,), dtype="int64")
    x = layers.Embedding(WORDS, 4)(words)
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    x = x + layers.Permute((2, 1))(layers.Dense(STEPS, "gelu")(y))
    x = x + layers.Dense(4, "gelu")(layers.LayerNormalization()(x))
    likely = layers.Dense(1, "sigmoid")(layers.GlobalMaxPooling1D()(x))
    return _compiled(keras.Model(words, likely), "binary_crossentropy")


def forecast() -> Any:
    keras = _seeded()
    layers = [
        *(keras.Input((STEPS, 2)), keras.layers.Conv1D(4, 3, padding="causal", activation="relu")),
        *(keras.layers.GRU(3, return_sequences=True), keras.layers.LSTM(3), keras.layers.Dense(1)),
    ]
    return _compiled(keras.Sequential(layers), "mse", metrics=["mae"], clipvalue=0.5)


def translation() -> Any:
    """An encoder whose state a decoder begins with."""
    keras = _seeded()
    layers = keras.layers
    sentence = keras.Input((STEPS,), dtype="int64", name="sentence")
    begun = keras.Input((STEPS,), dtype="int64", name="begun")
    embedding = layers.Embedding(WORDS, 4)
    state = layers.GRU(4)(embedding(sentence))
    x = layers.GRU(4, return_sequences=True)(embedding(begun), initial_state=state)
    x = layers.AdditiveAttention()([x, embedding(sentence)]) + x
    words = layers.Dense(WORDS, "softmax")(x)
    return _compiled(
        keras.Model({"sentence": sentence, "begun": begun}, words), "sparse_categorical_crossentropy"
    )


def siamese() -> Any:
    keras = _seeded()

    def contrastive(far: Any, distance: Any) -> Any:
        near = (1 - far) * keras.ops.square(distance)
        return keras.ops.mean(near + far * keras.ops.square(keras.ops.maximum(1 - distance, 0)), axis=-1)

    tower = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)])
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    squared = keras.ops.sum(keras.ops.square(tower(left) - tower(right)), axis=1, keepdims=True)
    model = keras.Model({"left": left, "right": right}, keras.ops.sqrt(keras.ops.maximum(squared, 1e-7)))
    return _compiled(model, contrastive)


def recommender() -> Any:
    keras = _seeded()
    layers = keras.layers
    user = keras.Input((1,), dtype="int64", name="user")
    film = keras.Input((1,), dtype="int64", name="film")

    def taste(number: Any, size: int) -> Any:
        embedded = layers.Embedding(9, size, embeddings_regularizer=keras.regularizers.L2(1e-3))
        return layers.Flatten()(embedded(number))

    match = layers.Dot(axes=1)([taste(user, 3), taste(film, 3)]) + taste(user, 1) + taste(film, 1)
    model = keras.Model({"user": user, "film": film}, layers.Activation("sigmoid")(match))
    return _compiled(model, "binary_crossentropy", metrics=["mse"])


def wide_and_deep() -> Any:
    keras = _seeded()
    layers = keras.layers
    age, job = keras.Input((1,), name="age"), keras.Input((1,), dtype="int64", name="job")
    town = keras.Input((1,), dtype="int64", name="town")
    places = layers.IntegerLookup(vocabulary=[89, 118], output_mode="one_hot")(town)
    wide = layers.Concatenate()([layers.CategoryEncoding(4, output_mode="one_hot")(job), places])
    deep = layers.Dense(4, "relu")(layers.Concatenate()([layers.Rescaling(0.5)(age), wide]))
    likely = layers.Dense(1, "sigmoid")(layers.Concatenate()([wide, deep]))
    model = keras.Model({"age": age, "job": job, "town": town}, likely)
    return _compiled(model, "binary_crossentropy", metrics=["accuracy", "AUC"])


def distiller() -> Any:
    """A small model that learns from the labels and from a large one, which stays as it is."""
    keras = _seeded()

    def network(units: int) -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(3)])

    class Distiller(keras.Model):  # type: ignore[misc]
        """Adds the divergence from the teacher to the loss."""

        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = network(3), network(8)
            self.teacher.trainable = False
            self.divergence = keras.losses.KLDivergence()

        def build(self, shape: Any) -> None:
            self.student.build(shape)
            self.teacher.build(shape)
            self.built = True

        def call(self, x: Any, training: bool = False) -> Any:
            return self.student(x, training=training)

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
        ) -> Any:
            loss = super().compute_loss(x, y, y_pred, sample_weight, **more)
            said, guess = keras.ops.softmax(self.teacher(x) / 3), keras.ops.softmax(y_pred / 3)
            return 0.4 * loss + 0.6 * self.divergence(said, guess, sample_weight=sample_weight)

    model = Distiller()
    model.build((None, 4))
    return _compiled(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
