"""Run one of two workers that fit the same small model, as a user's program does; print the results as JSON.

Usage: two_workers.py INDEX PORT0 PORT1 [FAULT ...]

The corrections of the given faults are not applied.
"""

import hashlib
import json
import os
import sys

BATCH = 8
STEPS = (5, 7, 4)


def main() -> None:
    index, ports, left_out = int(sys.argv[1]), sys.argv[2:4], sys.argv[4:]
    workers = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    )
    import keras
    import numpy as np
    import tensorflow as tf

    from tfspark.training.input.distribute import distribute_from_function
    from tfspark.training.keras_corrections import apply_corrections

    apply_corrections(leave_out=left_out)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        )
        accumulated = {"gradient_accumulation_steps": 2} if "gradients" in left_out else {}
        model.compile(keras.optimizers.Adam(**accumulated), "mse", metrics=["mae"])
    rng = np.random.default_rng(index)

    class Feed:
        """Passes of different lengths, which are known in advance."""

        opened = 0
        weighs_rows = False
        is_over = False

        def open_pass(self):
            self.opened += 1
            return self

        def iterator(self):
            return iter(dataset)

        def has_step(self, step):
            return step < STEPS[self.opened - 1]

        def steps_from(self, step, most):
            return min(most, max(STEPS[self.opened - 1] - step, 0))

        def batches(self):
            for _ in range(STEPS[self.opened - 1]):
                x = rng.random((BATCH, 3), np.float32) + index
                yield x, x.sum(1), np.ones(BATCH, np.float32)

    feed = Feed()
    if "epochs" in left_out:
        feed.opened = 0
        original = feed.batches

        def batches():
            feed.opened += 1
            return original()

        feed.batches = batches
    spec = (
        tf.TensorSpec((BATCH, 3), tf.float32),
        tf.TensorSpec((BATCH,), tf.float32),
        tf.TensorSpec((BATCH,), tf.float32),
    )
    dataset = distribute_from_function(
        strategy, lambda _: tf.data.Dataset.from_generator(feed.batches, output_signature=spec), feed
    )
    error, history = None, {}
    try:
        history = model.fit(dataset, epochs=len(STEPS), verbose=0, shuffle=False).history
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    trained = b"".join(value.numpy().tobytes() for value in model.trainable_variables)
    state = b"".join(value.numpy().tobytes() for value in model.non_trainable_variables)
    result = {
        "error": error,
        "epochs": len(history.get("loss", [])),
        "iterations": int(model.optimizer.iterations.numpy()),
        "trained": hashlib.sha256(trained).hexdigest(),
        "state": hashlib.sha256(state).hexdigest(),
    }
    print("RESULT " + json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
