"""Small models with the architectures of the code examples on keras.io, and rows for them.

Every function that makes rows takes their number, and returns features, labels, and None for weights. A seed decides
the initial weights. The models have no layers that draw random numbers during training; noise is an input instead.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Images with noise, and the same images without noise."""
    rng = _rng()
    clean = (rng.random((rows, SIZE, SIZE, 1)) > 0.6).astype(np.float32)
    return clean + 0.3 * rng.normal(size=clean.shape).astype(np.float32), clean, None


def films(rows: int) -> Any:
    """Three frames of pixels, and the last frame as the label."""
    x = _rng().random((rows, 3, SIZE, SIZE, 1)).astype(np.float32)
    return x, x[:, -1], None


def reviews(rows: int) -> Any:
    """Numbers of words, and a binary label."""
    x = _rng().integers(1, WORDS, (rows, STEPS))
    return x, (x.sum(1, keepdims=True) > x.sum(1).mean()).astype(np.float32), None


def series(rows: int) -> Any:
    """Two values per time step, and the next value of the first."""
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
    """A number, two categories, and a binary label."""
    rng = _rng()
    age, job = rng.normal(size=(rows, 1)).astype(np.float32), rng.integers(0, 4, (rows, 1))
    town = rng.choice([89, 118, 47], (rows, 1))
    return {"age": age, "job": job, "town": town}, (age + job > 1.5).astype(np.float32), None


def noisy_points(rows: int) -> Any:
    """Points, noise, a ratio for a mixture of both, and the points as labels."""
    rng = _rng()
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    noise = rng.normal(size=(rows, 4)).astype(np.float32)
    return {"image": x, "noise": noise, "share": rng.random((rows, 1)).astype(np.float32)}, x, None


def triplets(rows: int) -> Any:
    """A point, a point far from it, a point near it, and an unused label."""
    rng = _rng()
    anchor, far, change = rng.normal(size=(3, rows, 4)).astype(np.float32)
    return (
        {"anchor": anchor, "far": far, "near": anchor + 0.3 * change},
        np.zeros((rows, 1), np.float32),
        None,
    )


def classes(rows: int) -> Any:
    """Points, and one of three classes each."""
    x = _rng().normal(size=(rows, 4)).astype(np.float32)
    return x, x[:, :3].argmax(1), None


def gaps(rows: int) -> Any:
    """Numbers of words with 0 in place of some, and all of the words as labels."""
    rng = _rng()
    words = rng.integers(1, WORDS, (rows, STEPS))
    return np.where(rng.random((rows, STEPS)) < 0.4, 0, words), words, None


def next_words(rows: int) -> Any:
    """Numbers of words, and the next word for each."""
    words = _rng().integers(1, WORDS, (rows, STEPS + 1))
    return words[:, :-1], words[:, 1:], None


def captions(rows: int) -> Any:
    """An image, the beginning of its caption, and the whole caption: numbers of words, with 0 after the last."""
    rng = _rng()
    said = rng.integers(1, WORDS, (rows, STEPS)) * (np.arange(STEPS) < rng.integers(1, STEPS + 1, (rows, 1)))
    begun = np.concatenate([np.ones((rows, 1), said.dtype), said[:, :-1]], 1)
    return {"image": rng.normal(size=(rows, 4)).astype(np.float32), "begun": begun}, said, None


def lines_of_text(rows: int) -> Any:
    """Columns of pixels, the text that they show, and an unused label."""
    rng = _rng()
    text = rng.integers(1, 4, (rows, 2))
    columns = rng.normal(size=(rows, 5, 2)).astype(np.float32)
    return {"columns": columns, "text": text}, np.zeros((rows, 1), np.float32), None


def answers(rows: int) -> Any:
    """Points, a binary answer for each, the weight of each answer, and an unused label."""
    rng = _rng()
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    yes = (x.sum(1, keepdims=True) > 0).astype(np.float32)
    counts = rng.random((rows, 1)).astype(np.float32)
    return {"image": x, "yes": yes, "counts": counts}, np.zeros((rows, 1), np.float32), None


def bags(rows: int) -> Any:
    """Three points, and whether one of them is far to the right."""
    x = _rng().normal(size=(rows, 3, 4)).astype(np.float32)
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}, (x[..., 0].max(1) > 1).astype(np.int64), None


def roads(rows: int) -> Any:
    """The traffic on three roads for some time steps, and in the next step."""
    x = _rng().normal(size=(rows, STEPS, 3)).astype(np.float32).cumsum(1)
    return x, x[:, -1] + 0.1, None


def members(rows: int) -> Any:
    """A number, a text, and a binary label."""
    rng = _rng()
    age, job = rng.normal(40, 9, (rows, 1)).astype(np.float32), rng.choice(["cook", "pilot"], rows)
    yes = ((age > 40) == (job == "cook")[:, None]).astype(np.float32)
    return {"age": age, "job": job.astype(object)}, yes, None


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
    """Separable convolutions with a shortcut around them."""
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
    # Adam's steps are large even where the gradient is only a rounding error, as for the bias of the keys: use SGD.
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    return model


def vision_transformer() -> Any:
    keras = _seeded()

    class Patches(keras.layers.Layer):  # type: ignore[misc]
        """Splits an image into a sequence of squares."""

        def call(self, images: Any) -> Any:
            patches = keras.ops.image.extract_patches(images, 4)
            return keras.ops.reshape(patches, (-1, 4, patches.shape[-1]))

    image = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Flatten()(_attended(keras, keras.layers.Dense(4)(Patches()(image))))
    kind = keras.layers.Dense(3, "softmax")(x)
    return _compiled(keras.Model(image, kind), "sparse_categorical_crossentropy", global_clipnorm=0.5)


def mixer() -> Any:
    """Dense layers over positions and over channels, in turn."""
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
    """An encoder, and a decoder that begins with the encoder's state."""
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
    """A small model that learns from the labels and from a large model, which is not trained."""
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


# --- models with their own steps ---------------------------------------------------------------------


def _network(keras: Any, *units: int, size: int = 4) -> Any:
    hidden = [keras.layers.Dense(count, "tanh") for count in units[:-1]]
    return keras.Sequential([keras.Input((size,)), *hidden, keras.layers.Dense(units[-1])])


def _stepping(loss_of: Callable[[Any, Any, Any], Any], **networks: Any) -> Any:
    """Return a model with its own steps, whose loss a function returns.

    Args:
        loss_of: (model, features, labels) -> the loss: a number, or a value for each row, or a pair of such values and
            their weights.
        networks: the model's attributes. The model's output is that of the first network for the first input.
    """
    import keras
    import tensorflow as tf

    class Stepping(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, network in networks.items():
                setattr(self, name, network)
            self.measured = keras.metrics.Mean(name="measured_loss")

        @property
        def metrics(self) -> Any:
            return [self.measured]

        def call(self, x: Any) -> Any:
            return getattr(self, next(iter(networks)))(tf.nest.flatten(x)[0])

        def measure(self, data: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            loss = loss_of(self, x, y)
            loss, weights = loss if isinstance(loss, tuple) else (loss, None)
            self.measured.update_state(loss, sample_weight=weights)
            return loss

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.measure(data)
            weights = self.trainable_weights
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"measured_loss": self.measured.result()}

        def test_step(self, data: Any) -> Any:
            self.measure(data)
            return {"measured_loss": self.measured.result()}

    model = Stepping()
    model.built = True  # Its networks are built.
    model.compile(keras.optimizers.SGD(0.02))
    return model


def variational_autoencoder() -> Any:
    keras = _seeded()
    ops = keras.ops

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        mean, spread = ops.split(model.encoder(x["image"]), 2, axis=1)
        said = model.decoder(mean + ops.exp(spread / 2) * x["noise"][:, :2])
        lost = ops.mean(ops.sum(ops.square(y - said), axis=1))
        return lost - 0.5 * ops.mean(ops.sum(1 + spread - ops.square(mean) - ops.exp(spread), axis=1))

    return _stepping(loss_of, encoder=_network(keras, 5, 4), decoder=_network(keras, 5, 4, size=2))


def triplet_network() -> Any:
    """The loss has a value for each row."""
    keras = _seeded()
    ops = keras.ops

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        anchor = model.tower(x["anchor"])
        near, far = (ops.sum(ops.square(anchor - model.tower(x[name])), axis=-1) for name in ("near", "far"))
        return ops.maximum(near - far + 0.5, 0)

    return _stepping(loss_of, tower=_network(keras, 5, 2))


def masked_language_model() -> Any:
    """The loss has a value for each word. Only masked words count."""
    keras = _seeded()
    words = keras.Input((STEPS,), dtype="int64")
    x = keras.layers.Dense(WORDS, "softmax")(_attended(keras, keras.layers.Embedding(WORDS, 4)(words)))
    of_words = keras.losses.SparseCategoricalCrossentropy(reduction=None)

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        weights = keras.ops.cast(keras.ops.equal(x, 0), "float32")
        return of_words(y, model.network(x), sample_weight=weights), weights

    return _stepping(loss_of, network=keras.Model(words, x))


def contrasted_views() -> Any:
    """The loss compares each row with the other rows of its batch."""
    keras = _seeded()
    ops = keras.ops

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        views = [ops.normalize(model.tower(x[name]), axis=1) for name in ("anchor", "near")]
        likeness = ops.matmul(views[0], ops.transpose(views[1])) / 0.2
        own = ops.arange(ops.shape(likeness)[0])
        return ops.mean(keras.losses.sparse_categorical_crossentropy(own, likeness, from_logits=True))

    return _stepping(loss_of, tower=_network(keras, 5, 3))


def _teller(keras: Any) -> Any:
    """A network that continues the caption of an image."""
    layers = keras.layers
    image, begun = keras.Input((4,), name="image"), keras.Input((STEPS,), dtype="int64", name="begun")
    x = layers.Embedding(WORDS, 4)(begun)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True))
    x = layers.Dense(WORDS)(x + layers.Reshape((1, 4))(layers.Dense(4, "tanh")(image)))
    return keras.Model({"image": image, "begun": begun}, x)


def captioning() -> Any:
    """The loss is divided by the batch's number of words."""
    keras = _seeded()
    ops = keras.ops

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        is_word = ops.cast(ops.not_equal(y, 0), "float32")
        of_words = keras.losses.sparse_categorical_crossentropy(y, model.teller(x), from_logits=True)
        return ops.sum(of_words * is_word) / ops.sum(is_word)

    return _stepping(loss_of, first=keras.layers.Identity(), teller=_teller(keras))


def dictation() -> Any:
    """`compute_loss` gets a weight for each word."""
    keras = _seeded()

    def loss_of(model: Any, x: Any, y: Any) -> Any:
        is_word = keras.ops.not_equal(y, 0)
        return model.compute_loss(None, keras.ops.one_hot(y, WORDS), model.teller(x), sample_weight=is_word)

    model = _stepping(loss_of, first=keras.layers.Identity(), teller=_teller(keras))
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    return model


def diffusion() -> Any:
    """The step keeps an exponential moving average of the weights."""
    keras = _seeded()
    ops = keras.ops

    class Diffusion(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = _network(keras, 6, 4, size=5)
            self.mean_network = keras.models.clone_model(self.network)
            self.mean_network.set_weights(self.network.get_weights())
            self.of_noise = keras.metrics.Mean(name="noise_loss")

        @property
        def metrics(self) -> Any:
            return [self.of_noise]

        def call(self, x: Any) -> Any:
            return self.said_by(self.mean_network, x)

        def said_by(self, network: Any, x: Any) -> Any:
            share = x["share"]
            mixed = ops.cos(share) * x["image"] + ops.sin(share) * x["noise"]
            return network(ops.concatenate([mixed, share], axis=1))

        def train_step(self, data: Any) -> Any:
            import tensorflow as tf

            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                loss = self.loss(x["noise"], self.said_by(self.network, x))
            weights = self.network.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            for weight, mean in zip(self.network.weights, self.mean_network.weights, strict=True):
                mean.assign(0.9 * mean + 0.1 * weight)
            self.of_noise.update_state(loss)
            return {"noise_loss": self.of_noise.result()}

        def test_step(self, data: Any) -> Any:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.of_noise.update_state(self.loss(x["noise"], self(x)))
            return {"noise_loss": self.of_noise.result()}

    model = Diffusion()
    model.built = True
    model.compile(keras.optimizers.AdamW(0.01), keras.losses.mean_absolute_error)
    return model


def gradient_penalty() -> Any:
    """The critic takes two steps, with a gradient in its loss, for each step of the generator."""
    keras = _seeded()
    import tensorflow as tf

    ops = keras.ops

    class Wasserstein(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.maker, self.critic = _network(keras, 5, 4), _network(keras, 5, 1)
            self.of_maker, self.of_critic = (
                keras.metrics.Mean(name=f"{name}_loss") for name in ("maker", "critic")
            )

        def compile(self, optimizer: Any, critic_optimizer: Any) -> None:
            super().compile(optimizer)
            self.critic_optimizer = critic_optimizer

        @property
        def metrics(self) -> Any:
            return [self.of_maker, self.of_critic]

        def call(self, x: Any) -> Any:
            return self.critic(self.maker(x["noise"]))

        def penalty(self, x: Any, made: Any, real: Any) -> Any:
            mixed = real + x["share"] * (made - real)
            with tf.GradientTape() as tape:
                tape.watch(mixed)
                said = self.critic(mixed)
            slope = ops.sqrt(ops.sum(ops.square(tape.gradient(said, [mixed])[0]), axis=1))
            return ops.mean(ops.square(slope - 1))

        def train_step(self, data: Any) -> Any:
            x, real, _ = keras.utils.unpack_x_y_sample_weight(data)
            for _ in range(2):
                with tf.GradientTape() as tape:
                    made = self.maker(x["noise"])
                    gap = ops.mean(self.critic(made)) - ops.mean(self.critic(real))
                    of_critic = gap + 10 * self.penalty(x, made, real)
                weights = self.critic.trainable_weights
                self.critic_optimizer.apply(tape.gradient(of_critic, weights), weights)
            with tf.GradientTape() as tape:
                of_maker = -ops.mean(self(x))
            weights = self.maker.trainable_weights
            self.optimizer.apply(tape.gradient(of_maker, weights), weights)
            self.of_maker.update_state(of_maker)
            self.of_critic.update_state(of_critic)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data: Any) -> Any:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.of_maker.update_state(-ops.mean(self(x)))
            return {"maker_loss": self.of_maker.result()}

    model = Wasserstein()
    model.built = True
    model.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.01))
    return model


# --- losses of layers, losses that compare rows --------------------------------------------------------


def own_call_contrast() -> Any:
    """A Loss with its own `__call__`, which compares rows."""
    keras = _seeded()
    ops = keras.ops

    class Contrast(keras.losses.Loss):  # type: ignore[misc]
        def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            vectors = ops.normalize(y_pred, axis=1)
            likeness = ops.log_softmax(ops.matmul(vectors, ops.transpose(vectors)) / 0.5, axis=1)
            kinds = ops.reshape(y_true, (-1, 1))
            same = ops.cast(ops.equal(kinds, ops.transpose(kinds)), "float32")
            return -ops.mean(ops.sum(same * likeness, axis=1) / ops.sum(same, axis=1))

    model = _network(keras, 5, 3)
    model.compile(keras.optimizers.SGD(0.1), Contrast())
    return model


def transcription() -> Any:
    """A layer adds the loss of each row."""
    keras = _seeded()

    class Transcribed(keras.layers.Layer):  # type: ignore[misc]
        def call(self, text: Any, said: Any) -> Any:
            ones = keras.ops.ones_like(text[:, 0])
            lengths = (ones * keras.ops.shape(text)[1], ones * keras.ops.shape(said)[1])
            self.add_loss(keras.ops.ctc_loss(text, said, *lengths, mask_index=0))
            return said

    columns, text = keras.Input((5, 2), name="columns"), keras.Input((2,), dtype="int32", name="text")
    said = keras.layers.Dense(4)(
        keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))(columns)
    )
    model = keras.Model({"columns": columns, "text": text}, Transcribed()(text, said))
    model.compile(keras.optimizers.SGD(0.02))
    return model


def endpoint() -> Any:
    """A layer calls a loss of Keras and adds it to the model; it also has a metric."""
    keras = _seeded()

    class Endpoint(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.loss = keras.losses.BinaryCrossentropy(from_logits=True)
            self.accuracy = keras.metrics.BinaryAccuracy(name="accuracy")

        def call(self, said: Any, yes: Any, counts: Any) -> Any:
            self.add_loss(self.loss(yes, said, counts))
            self.accuracy.update_state(yes, said, counts)
            return keras.ops.sigmoid(said)

    image, yes, counts = (
        keras.Input((size,), name=name) for name, size in (("image", 4), ("yes", 1), ("counts", 1))
    )
    said = Endpoint()(keras.layers.Dense(1)(image), yes, counts)
    model = keras.Model({"image": image, "yes": yes, "counts": counts}, said)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def mixing_rows() -> Any:
    """Each row gets the sum over all rows of the batch."""
    keras = _seeded()
    layers = keras.layers
    user = keras.Input((1,), dtype="int64", name="user")
    film = keras.Input((1,), dtype="int64", name="film")
    tastes = [layers.Flatten()(layers.Embedding(9, 3)(each)) for each in (user, film)]
    match = keras.ops.tensordot(*tastes, 2) + layers.Flatten()(layers.Embedding(9, 1)(user))
    model = keras.Model({"user": user, "film": film}, layers.Activation("sigmoid")(match))
    return _compiled(model, "binary_crossentropy", metrics=["mse"])


# --- models with their own layers and inputs -------------------------------------------------------------


def miniature_gpt() -> Any:
    """A Transformer with a causal mask; its second output has no loss."""
    keras = _seeded()
    words = keras.Input((STEPS,), dtype="int64")
    x = keras.layers.Embedding(WORDS, 4)(words)
    x = keras.layers.LayerNormalization()(
        x + keras.layers.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True)
    )
    model = keras.Model(words, [keras.layers.Dense(WORDS)(x), x])
    model.compile(
        keras.optimizers.SGD(0.5), [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None]
    )
    return model


def pixel_cnn() -> Any:
    """A convolution that sets part of its kernel to 0 in each step."""
    keras = _seeded()

    class Masked(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Conv2D(4, 3, padding="same", activation="relu")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)
            self.mask = np.ones(self.inner.kernel.shape, np.float32)
            self.mask[1, 1:], self.mask[2] = 0, 0

        def call(self, x: Any) -> Any:
            self.inner.kernel.assign(self.inner.kernel * self.mask)
            return self.inner(x)

    layers = [keras.Input((SIZE, SIZE, 1)), Masked(), keras.layers.Conv2D(1, 1, activation="sigmoid")]
    return _compiled(keras.Sequential(layers), "binary_crossentropy", metrics=())


def decision_forest() -> Any:
    """Two trees of three decisions with trained leaves. Each tree uses three randomly chosen features."""
    known = [np.random.permutation(4)[:3].tolist() for _ in range(2)]
    keras = _seeded()
    ops = keras.ops

    class Tree(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, known: list[int]) -> None:
            super().__init__()
            self.known = known
            self.decisions = keras.layers.Dense(3, "sigmoid")
            self.leaves = self.add_weight(shape=(4, 3), initializer="random_normal", name="leaves")

        def build(self, shape: Any) -> None:
            self.decisions.build((None, 3))

        def call(self, x: Any) -> Any:
            first, left, right = ops.split(self.decisions(ops.take(x, self.known, axis=1)), 3, axis=1)
            ways = [first * left, first * (1 - left), (1 - first) * right, (1 - first) * (1 - right)]
            return ops.matmul(ops.concatenate(ways, axis=1), ops.softmax(self.leaves))

    x = keras.Input((4,))
    trees = [Tree(each)(x) for each in known]
    return _compiled(keras.Model(x, (trees[0] + trees[1]) / 2), "sparse_categorical_crossentropy")


def attention_over_instances() -> Any:
    keras = _seeded()
    layers = keras.layers
    instances = [keras.Input((4,)) for _ in range(3)]
    encoder, scorer = layers.Dense(5, "relu"), layers.Dense(1, kernel_regularizer="l2")
    encoded = [encoder(each) for each in instances]
    shares = keras.ops.softmax(keras.ops.stack([scorer(each) for each in encoded]), axis=0)
    x = layers.concatenate([shares[index] * each for index, each in enumerate(encoded)])
    return _compiled(keras.Model(instances, layers.Dense(2, "softmax")(x)), "sparse_categorical_crossentropy")


def graph_convolution() -> Any:
    keras = _seeded()

    class Neighbours(keras.layers.Layer):  # type: ignore[misc]
        """Mixes the features of a road with those of its neighbours."""

        def __init__(self) -> None:
            super().__init__()
            self.joins = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]], np.float32)
            self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")

        def call(self, x: Any) -> Any:
            return keras.ops.relu(self.scale[0] * x + self.scale[1] * keras.ops.matmul(x, self.joins))

    layers = [keras.Input((STEPS, 3)), Neighbours(), keras.layers.LSTM(4), keras.layers.Dense(3)]
    return _compiled(keras.Sequential(layers), "mse", metrics=["mae"])


def feature_space() -> Any:
    keras = _seeded()
    import tensorflow as tf

    space = keras.utils.FeatureSpace(
        {"age": keras.utils.FeatureSpace.float_normalized(), "job": "string_categorical"},
        output_mode="concat",
    )
    space.adapt(tf.data.Dataset.from_tensor_slices(members(28)[0]).batch(4))
    x = keras.layers.Dense(4, "relu")(space.get_encoded_features())
    model = keras.Model(space.get_inputs(), keras.layers.Dense(1, "sigmoid")(x))
    return _compiled(model, "binary_crossentropy")
