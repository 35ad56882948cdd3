"""Like TensorFlowOnSpark's examples/mnist/keras/mnist_spark.py: a generator reads the items of an RDD.

The workers train synchronously.
"""

from __future__ import annotations

import argparse
from typing import Any


def main_fun(args: Any, ctx: Any) -> dict[str, Any]:
    import numpy as np
    import tensorflow as tf

    from tfspark import TFNode, compat

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    tf_feed = TFNode.DataFeed(ctx.mgr, False)
    seen = []

    def rdd_generator() -> Any:
        while not tf_feed.should_stop():
            batch = tf_feed.next_batch(1)
            if len(batch) == 0:
                return
            pixels, label = batch[0]
            seen.append(pixels[0])
            image = np.reshape(np.array(pixels).astype(np.float32) / 255.0, (8, 8, 1))
            yield image, np.reshape(np.array(label).astype(np.float32), (1,))

    shapes = (tf.TensorShape([8, 8, 1]), tf.TensorShape([1]))
    ds = tf.data.Dataset.from_generator(rdd_generator, (tf.float32, tf.float32), shapes)
    ds = ds.batch(args.batch_size)
    options = tf.data.Options()
    compat.disable_auto_shard(options)
    ds = ds.with_options(options)

    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1)),
                tf.keras.layers.Flatten(),
                tf.keras.layers.Dense(2, activation="softmax"),
            ]
        )
        model.compile(
            loss=tf.keras.losses.sparse_categorical_crossentropy,
            optimizer=tf.keras.optimizers.SGD(learning_rate=0.1),
            metrics=["accuracy"],
        )
    # The workers get slightly different numbers of rows: stop before one of them has no more rows.
    steps = None if args.to_the_end else args.rows / args.batch_size / ctx.num_workers * 0.9
    history = model.fit(x=ds, epochs=args.epochs, steps_per_epoch=steps, verbose=0)
    compat.export_saved_model(model, args.export_dir, ctx.job_name == "chief")
    tf_feed.terminate()
    return {
        "who": [ctx.job_name, ctx.task_index, ctx.num_workers, ctx.executor_id],
        "cluster": {job: len(nodes) for job, nodes in ctx.cluster_spec.items()},
        "rows": len(seen),
        "iterations": int(model.optimizer.iterations.numpy()),
        "accuracy": history.history["accuracy"],
        "weights": float(sum(np.abs(w).sum() for w in model.get_weights())),
    }


def parse(line: str) -> tuple[list[int], int]:
    values = [int(value) for value in line.split(",")]
    return values[1:], values[0]


if __name__ == "__main__":
    from pyspark import SparkConf, SparkContext

    from tfspark import TFCluster

    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--images_labels")
    parser.add_argument("--export_dir")
    parser.add_argument("--to_the_end", action="store_true")
    args = parser.parse_args()

    sc = SparkContext(conf=SparkConf().setAppName("mnist_spark"))
    images_labels = sc.textFile(args.images_labels).map(parse)
    cluster = TFCluster.run(
        sc,
        main_fun,
        args,
        args.cluster_size,
        num_ps=0,
        tensorboard=False,
        input_mode=TFCluster.InputMode.SPARK,
        master_node="chief",
    )
    cluster.train(images_labels, args.epochs)
    nodes = cluster.shutdown(grace_secs=30)
    import json

    print("NODES", json.dumps(nodes))
    sc.stop()
