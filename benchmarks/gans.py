"""Judge the images of a GAN by a classifier of real digits that was trained on the same rows as the GAN."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from prepared import ROOT

Array = npt.NDArray[Any]

NUM_SAMPLES = 10_000


class Judge:
    """A classifier of real digits.

    Args:
        images: the GAN's training images, shape (rows, height, width, 1), in [0, 1].
        labels: their digits, shape (rows,).
    """

    def __init__(self, images: Array, labels: Array):
        import keras

        spec = importlib.util.spec_from_file_location("gan", ROOT / "models/gan.py")
        assert spec is not None
        assert spec.loader is not None
        self._gan = importlib.util.module_from_spec(spec)
        sys.modules["gan"] = self._gan  # The module's dataclass looks up its own module.
        spec.loader.exec_module(self._gan)
        self._real, self._digits = images, labels
        keras.utils.set_random_seed(0)
        self._classifier = self._gan.train_classifier(images, labels)
        *_, hidden, _, _ = self._classifier.layers  # The dropout and the probabilities follow.
        self._features = keras.Model(self._classifier.inputs, hidden.output)

    def figures(self, model: Any, real: Array) -> tuple[float, float]:
        """Return the distance of samples from real images, and the classifier's mean confidence in them.

        Print the number of samples in each class, and how much the samples differ.
        """
        made, wanted = self._gan.samples(model, NUM_SAMPLES)
        confidence, shares = self._gan.judge(made, self._classifier)
        right = (self._classifier.predict(made, verbose=0, batch_size=256).argmax(axis=1) == wanted).mean()
        differ = deviation_within(made, wanted) / deviation_within(self._real, self._digits)
        print(f"rarest class {shares.min():.1%}, of the class asked for {right:.1%}", end=", ")
        print(f"deviation within a class {differ:.2f} of that of real images")
        return frechet_distance(self._seen(made), self._seen(real)), float(confidence)

    def after_each_epoch(self, real: Array, distances: list[float]) -> Any:
        """Return a Keras callback that appends the distance of the trained model's samples after each epoch."""
        import keras

        judge, seen = self, self._seen(real)

        class Measure(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                made, _ = judge._gan.samples(self.model, NUM_SAMPLES)
                distances.append(frechet_distance(judge._seen(made), seen))

        return Measure()

    def _seen(self, images: Array) -> Array:
        """Return the classifier's features in 64 random directions. A thousand images are enough for their covariance.

        Shape: (rows, 64).
        """
        features = self._features.predict(images, verbose=0, batch_size=256)
        features = features.reshape(len(features), -1)
        directions = np.random.default_rng(0).standard_normal((features.shape[1], 64))
        return np.asarray(features @ directions / np.sqrt(features.shape[1]), np.float64)


def frechet_distance(some: Array, others: Array) -> float:
    """Return the Fréchet distance between two sets of vectors, taken for samples of normal distributions.

    Between features of generated and of real images, it grows if samples look different from real images, and also if
    they differ less from each other (Heusel et al., 2017, with the features of a different network).

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, where m are their means and S their covariances (Dowson and Landau,
    1982).
    """
    first, second = np.cov(some, rowvar=False), np.cov(others, rowvar=False)
    # The eigenvalues of S1 S2 are those of the symmetric matrix S1^(1/2) S2 S1^(1/2).
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = some.mean(axis=0) - others.mean(axis=0)
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * common)


def deviation_within(images: Array, labels: Array) -> float:
    """Return how much images of a class differ: the standard deviation of a pixel, averaged over pixels and classes."""
    return statistics.mean(
        float(images[labels == label].std(axis=0).mean()) for label in set(labels.tolist())
    )
