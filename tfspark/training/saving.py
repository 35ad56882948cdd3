"""Checkpoints and exported models: the chief writes them and sends them to the driver's run directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import pyarrow as pa

from tfspark.feed.described import write_signature

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext

UPLOAD_SCHEMA = pa.schema([("path", pa.string()), ("data", pa.binary())])
UPLOAD_CHUNK_BYTES = 4 << 20
UPLOAD_TIMEOUT_S = 600.0


class Checkpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Save weights and optimizer state at an interval of epochs.

    A checkpoint is a file ``checkpoints/epoch-0003.keras`` in the run directory. It is written to a temporary path, and
    renamed when it is complete.

    Args:
        context: the node.
        to_save: returns the model in the form to save.
    """

    def __init__(self, context: NodeContext, to_save: Callable[[], keras.Model]):
        super().__init__()
        self._context = context
        self._to_save = to_save
        self._every = context.settings.checkpoint_every_epochs

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Save if it is time."""
        if self._context.is_chief and self._every and (epoch + 1) % self._every == 0:
            name = f"epoch-{epoch + 1:04d}.keras"
            path = os.path.join(self._context.scratch_dir, name)
            self._to_save().save(path)
            upload(self._context, Path(path), f"checkpoints/{name}")
            os.unlink(path)
            self._context.report("checkpoint", epoch=epoch + 1, name=name)


class ShareWeights(keras.callbacks.Callback):  # type: ignore[misc]
    """Send the chief's weights to the driver after every epoch, for the evaluator to fetch.

    Args:
        context: the node.
        to_save: returns the model in the form to save.
    """

    def __init__(self, context: NodeContext, to_save: Callable[[], keras.Model]):
        super().__init__()
        self._context = context
        self._to_save = to_save

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Send the weights, and report it."""
        if self._context.is_chief:
            name = f"side-car/epoch-{epoch + 1:04d}.weights.h5"
            path = Path(self._context.scratch_dir, "side-car.weights.h5")
            self._to_save().save_weights(path)
            upload(self._context, path, name)
            self._context.report("weights", epoch=epoch + 1, name=name)


def upload_pictures(context: NodeContext, draw: Callable[[str], None]) -> None:
    """Send the files that `draw(directory)` writes to ``<run directory>/pictures/``."""
    folder = Path(context.scratch_dir, "pictures")
    folder.mkdir()
    try:
        draw(str(folder))
        for picture in sorted(folder.iterdir()):  # One by one: a folder would replace the previous one.
            upload(context, picture, f"pictures/{picture.name}")
    finally:
        shutil.rmtree(folder)


def upload_model(context: NodeContext, model: keras.Model, name: str, formats: tuple[str, ...]) -> None:
    """Save the model in the given formats and send it to ``<run directory>/<name>/``.

    If the model module has an `export` hook, it writes into the same folder.

    Args:
        context: the node.
        model: a built model.
        name: folder in the run directory.
        formats: of ``keras`` (``model.keras``) and ``saved_model`` (``saved_model/``).
    """
    folder = Path(context.scratch_dir, "export")
    folder.mkdir(parents=True)
    try:
        if context.hooks.export is not None:
            context.hooks.export(model, str(folder))
        if "keras" in formats:
            model.save(folder / "model.keras")
            write_signature(model, folder)
        if "saved_model" in formats:
            model.export(str(folder / "saved_model"), verbose=False)
        upload(context, folder, name)
    finally:
        shutil.rmtree(folder)


def upload(context: NodeContext, path: Path, name: str) -> None:
    """Send a file or a folder to the driver's run directory."""
    with context.activity.waiting():
        context.control.put({"name": name}, UPLOAD_SCHEMA, lambda: chunks_of(path), UPLOAD_TIMEOUT_S)


def chunks_of(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield a file, or the files of a folder, as (path, bytes) rows for an upload."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        relative = "" if file == path else file.relative_to(path).as_posix()
        with file.open("rb") as stream:
            data = stream.read(UPLOAD_CHUNK_BYTES)
            while True:
                yield pa.record_batch([[relative], [data]], schema=UPLOAD_SCHEMA)
                data = stream.read(UPLOAD_CHUNK_BYTES)
                if not data:
                    break
