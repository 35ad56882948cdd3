"""Keras in Spark ML: estimators that train on a cluster, and models that add predictions to a DataFrame."""

from __future__ import annotations

from tfspark.ml.autoencoder import Autoencoder, AutoencoderModel
from tfspark.ml.estimator import KerasEstimator, KerasModel
from tfspark.ml.gan import GAN, GANModel
from tfspark.ml.images import ImageFeature
from tfspark.ml.layers import Dense, Dropout, Layer
from tfspark.ml.ready_made import (
    CNN,
    RNN,
    CNNClassifier,
    DenseClassifier,
    DenseRegressor,
    RNNClassifier,
    RNNRegressionModel,
    RNNRegressor,
)
from tfspark.ml.summary import TrainingSummary

__all__ = [
    "CNN",
    "GAN",
    "RNN",
    "Autoencoder",
    "AutoencoderModel",
    "CNNClassifier",
    "Dense",
    "DenseClassifier",
    "DenseRegressor",
    "Dropout",
    "GANModel",
    "ImageFeature",
    "KerasEstimator",
    "KerasModel",
    "Layer",
    "RNNClassifier",
    "RNNRegressionModel",
    "RNNRegressor",
    "TrainingSummary",
]
