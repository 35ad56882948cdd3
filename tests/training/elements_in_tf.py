"""Build elements from rows and from files in a process with TensorFlow, as a trainer does; print them as JSON.

Usage: elements_in_tf.py CASES FILES

CASES is a file with a JSON list of ``{"columns", "batches", "replicas", "hook"}``, where each batch is a text from
`encode_sample`. FILES is a folder of TFRecord files with the columns x and label.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FILES_BATCH = 100


def main() -> None:
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    cases = json.loads(Path(sys.argv[1]).read_text())
    print("RESULT " + json.dumps([outcome(case) for case in cases]))
    print("FILES " + json.dumps([labels_of_steps(sys.argv[2], devices) for devices in (1, 2)]))


def labels_of_steps(folder: str, devices: int) -> list[list[int]]:
    """Read an epoch of files on a worker with this number of devices, as Keras does; return the labels of each step."""
    import tensorflow as tf

    from tfspark import Column, TFRecordFiles
    from tfspark.feed.columns import Columns
    from tfspark.protocol.settings import Hooks
    from tfspark.training.input.files import files_dataset

    strategy = tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(devices)])
    plan = TFRecordFiles(folder, Columns((Column("x"),), Column("label"))).plan(1, FILES_BATCH)
    context: Any = SimpleNamespace(node=SimpleNamespace(task_index=0), hooks=Hooks(), strategy=strategy)
    feed = files_dataset(context, plan, context.strategy)._tfspark_feed
    feed.open_pass()
    iterator, steps = feed.iterator(), list[list[int]]()
    while feed.has_step(len(steps)):
        _, labels, _ = next(iterator)
        parts = strategy.experimental_local_results(labels)
        steps.append([int(label) for part in parts for label in part.numpy()])
    return steps


def with_python_control_flow(batch: dict[str, Any]) -> Any:
    """Add 1 three times to small values, negate large ones."""
    import tensorflow as tf

    x = batch["x"]
    if tf.reduce_max(x) < 10:
        for _ in tf.range(3):
            x += 1
    else:
        x = -x
    return x


HOOKS = {"with_python_control_flow": with_python_control_flow}


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """Return the elements of a case, or the error that the driver would raise."""
    from tfspark.training.input.graph_errors import as_data_error

    try:
        return {"elements": elements(case)}
    except Exception as error:
        told = as_data_error(error)
        return {"error": type(told).__name__, "says": str(told)}


def elements(case: dict[str, Any]) -> list[dict[str, Any]]:
    from tfspark.feed.arrays import row_weights, to_numpy
    from tfspark.feed.columns import Columns
    from tfspark.feed.reader import WEIGHT
    from tfspark.feed.stream import decode_sample
    from tfspark.training.input.dataset import local_dataset

    columns = Columns.from_json(case["columns"])
    batches = []
    for encoded in case["batches"]:
        rows = to_numpy(decode_sample(encoded), columns)
        batches.append({**rows, WEIGHT: row_weights(rows, columns, len(next(iter(rows.values()))))})
    sample = {name: values[:1] for name, values in batches[0].items()}
    spec = SimpleNamespace(columns=columns, batch_size=len(batches[0][WEIGHT]), synchronous=True)
    feed: Any = SimpleNamespace(spec=spec, sample=sample, features_hook=HOOKS.get(case["hook"]))
    dataset = local_dataset(feed, lambda: iter(batches), case["replicas"])
    return [told(element) for element in dataset]


def told(element: Any) -> dict[str, Any]:
    x, y, weight = element
    return {"x": plain(x), "y": plain(y), "weight": weight.numpy().tolist()}


def plain(values: Any) -> Any:
    import tensorflow as tf

    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    kind = "ragged " if isinstance(values, tf.RaggedTensor) else ""
    rows = values.to_list() if kind else values.numpy().tolist()
    return {"dtype": kind + values.dtype.name, "rows": text(rows)}


def text(values: Any) -> Any:
    if isinstance(values, list):
        return [text(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


if __name__ == "__main__":
    main()
