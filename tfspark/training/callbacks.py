"""Create Keras callbacks from the settings of an experiment. Runs in the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


def make_callbacks(settings: Mapping[str, Any]) -> list[keras.callbacks.Callback]:
    """Create the callbacks named in ``train.callbacks``; they are the same, and decide the same, on all workers."""
    made: list[keras.callbacks.Callback] = []
    if settings.get("terminate_on_nan"):
        made.append(keras.callbacks.TerminateOnNaN())
    if settings.get("reduce_lr_on_plateau"):
        made.append(keras.callbacks.ReduceLROnPlateau(**settings["reduce_lr_on_plateau"]))
    if settings.get("early_stopping"):
        made.append(keras.callbacks.EarlyStopping(**settings["early_stopping"]))
    return made
