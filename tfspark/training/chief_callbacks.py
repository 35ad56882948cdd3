"""Let Keras callbacks that write files run on the chief only. Runs in the trainer.

All workers run the same callbacks, but several processes that write one file damage it. Callbacks that only write are
left out on the other workers. `BackupAndRestore` writes only complete files, and all workers get what the chief
restores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer as keras_trainer

from tfspark.errors import ConfigError

WRITERS = (
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.CSVLogger,
    keras.callbacks.TensorBoard,
    keras.callbacks.RemoteMonitor,
)
"""Callbacks that do nothing useful on other workers."""


def written_by_chief(
    callbacks: Sequence[keras.callbacks.Callback], is_chief: bool, keeps_state: bool
) -> list[keras.callbacks.Callback]:
    """Return the callbacks as a worker is to run them.

    Args:
        callbacks: the same on all workers.
        is_chief: whether this worker writes.
        keeps_state: whether tfspark saves its own checkpoints and restores them.
    """
    kept = [callback for callback in callbacks if is_chief or not isinstance(callback, WRITERS)]
    return [
        _Backup(callback, is_chief, keeps_state)
        if isinstance(callback, keras.callbacks.BackupAndRestore)
        else callback
        for callback in kept
    ]


def is_chief_of(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the chief of a strategy; True if there is only one worker."""
    if not keras_trainer._collective_all_reduce_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    return (
        resolver is None
        or resolver.task_type in ("chief", "master")
        or (
            (resolver.task_type, resolver.task_id) == ("worker", 0)
            and not {"chief", "master"} & set(resolver.cluster_spec().jobs)
        )
    )


class _Backup(keras.callbacks.Callback):  # type: ignore[misc]
    """`BackupAndRestore` for several workers: the chief has the files.

    Args:
        backup: Keras's callback.
        is_chief: whether this worker has the files.
        keeps_state: whether nothing must be restored, because tfspark restores its own checkpoints.
    """

    def __init__(self, backup: keras.callbacks.BackupAndRestore, is_chief: bool, keeps_state: bool):
        super().__init__()
        self._backup = backup
        self._is_chief = is_chief
        self._keeps_state = keeps_state
        backup._save_model = self._save

    def set_model(self, model: keras.Model) -> None:
        """Pass the model to Keras's callback."""
        super().set_model(model)
        self._backup.set_model(model)

    def on_train_begin(self, logs: Mapping[str, object] | None = None) -> None:
        """Restore the chief's backup on all workers.

        Raises:
            ConfigError: there is a backup, although the run continues from tfspark's own checkpoints.
        """
        if self._keeps_state:
            if self._is_chief and self._is_left_over():
                raise ConfigError(
                    f"expected no backup in {self._backup.backup_dir}, whose epochs Spark would feed again; tfspark "
                    "keeps checkpoints itself: continue with resume= (--resume), or remove the directory"
                )
            return
        if self._is_chief:
            self._backup.on_train_begin(logs)
        self._share()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, object] | None = None) -> None:
        """Save if it is time."""
        if self._is_chief:
            self._backup.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Save if it is time."""
        if self._is_chief:
            self._backup.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Mapping[str, object] | None = None) -> None:
        """Remove the backup."""
        if self._is_chief:
            self._backup.on_train_end(logs)

    def _is_left_over(self) -> bool:
        """Return whether an earlier run has left a backup, and not an earlier incarnation of this run."""
        optimizer = self.model.optimizer
        steps = 0 if optimizer is None else int(optimizer.iterations.numpy())
        return steps == 0 and os.path.exists(self._backup._training_metadata_path)

    def _save(self) -> None:
        """Save as Keras does, but write each file completely before it gets its name."""
        backup = self._backup
        os.makedirs(backup.backup_dir, exist_ok=True)
        weights, facts = backup._weights_path, backup._training_metadata_path
        if backup.double_checkpoint:
            for path, before in (
                (weights, backup._prev_weights_path),
                (facts, backup._prev_training_metadata_path),
            ):
                if os.path.exists(path):
                    os.replace(path, before)
        aside = os.path.join(backup.backup_dir, "next.weights.h5")
        backup.model.save_weights(aside, overwrite=True)
        with open(f"{facts}.next", "w", encoding="utf-8") as file:
            json.dump({"epoch": backup._current_epoch, "batch": backup._last_batch_seen}, file)
        os.replace(aside, weights)
        os.replace(f"{facts}.next", facts)

    def _share(self) -> None:
        """Send the chief's variables, and the epoch with which it continues, to all workers."""
        model, strategy = self.model, self.model.distribute_strategy
        if not keras_trainer._collective_all_reduce_multi_worker(strategy):
            return
        if model.optimizer is not None:
            model.optimizer.build(model.trainable_variables)
        optimizer = model.optimizer.variables if model.optimizer is not None else []
        variables = [variable.value for variable in [*model.weights, *optimizer]]
        epoch = float((model._initial_epoch or 0) if self._is_chief else 0)

        def of_chief() -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            has_it = tf.logical_and(tf.equal(context.replica_id_in_sync_group, 0), self._is_chief)
            own = [*(tf.identity(variable) for variable in variables), tf.constant(epoch)]
            # One call per variable: values in one call would need the same type.
            sent = [tf.where(has_it, value, tf.zeros_like(value)) for value in own]
            return [context.all_reduce("SUM", value) for value in sent]

        *values, shared = tf.function(lambda: strategy.run(of_chief), autograph=False)()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(strategy.experimental_local_results(value)[0])
        model._initial_epoch = int(strategy.experimental_local_results(shared)[0])
