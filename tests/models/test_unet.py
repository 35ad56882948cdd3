"""The segmentation network of ``models/unet.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models import unet

SMALL: dict[str, Any] = {"input_shape": [8, 12, 1], "num_classes": 3, "filters": 2}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((16, 8, 12, 1)).astype(np.float32)
MASKS = (2 * (IMAGES[..., 0] > 0.5)).astype(np.uint8)


def test_model_when_trained_and_saved_segments_the_same(tmp_path: Path) -> None:
    model = unet.build_model({**SMALL, "learning_rate": 0.03, "dropout": 0.0})
    history = model.fit(IMAGES, MASKS, batch_size=8, epochs=15, verbose=0).history
    model.save(tmp_path / "model.keras")
    said = model(IMAGES).numpy()
    assert said.shape == (16, 8, 12, 3)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert 0 < history["mean_iou"][0] < history["mean_iou"][-1] <= 1
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(IMAGES), said, rtol=1e-5, atol=1e-6)
    unet.draw(again, IMAGES, MASKS, str(tmp_path))
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"input_shape": [30, 32, 1]}, "height and width must be multiples of 4 with depth: 2"),
        ({"depth": 0}, "depth must be a whole number, 1 or more"),
        ({"classes": 3}, "unknown model parameter 'classes': did you mean 'num_classes'"),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        unet.build_model(params)


def test_callbacks_when_decay_is_given_reduce_the_learning_rate() -> None:
    assert unet.callbacks({}) == []
    (schedule,) = unet.callbacks({"decay": 0.5})
    assert [schedule.schedule(epoch, 0.1) for epoch in (0, 1)] == [0.1, 0.05]
