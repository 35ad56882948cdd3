"""Run TensorFlowOnSpark's other MNIST examples, one after another on one SparkContext.

TFRecords by dfutil, the estimator pipeline (train and transform), TFParallel inference over files, workers that
read files themselves, and inference through the cluster. Prints the result of each as JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from migrate.digits import SIDE


def train_fn(args: Any, ctx: Any) -> None:
    """Like examples/mnist/keras/mnist_pipeline.py."""
    import numpy as np
    import tensorflow as tf

    from tfspark import TFNode, compat

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = small_model()
    tf_feed = TFNode.DataFeed(ctx.mgr, input_mapping=args.input_mapping)

    def rdd_generator() -> Any:
        while not tf_feed.should_stop():
            batch = tf_feed.next_batch(1)
            if len(batch["image"]) == 0:
                return
            image = np.reshape(np.array(batch["image"][0], np.float32) / 255.0, (SIDE, SIDE, 1))
            yield image, np.reshape(np.array(batch["label"][0], np.float32), (1,))

    shapes = (tf.TensorShape([SIDE, SIDE, 1]), tf.TensorShape([1]))
    ds = tf.data.Dataset.from_generator(rdd_generator, (tf.float32, tf.float32), shapes).batch(
        args.batch_size
    )
    options = tf.data.Options()
    compat.disable_auto_shard(options)
    steps = args.rows * args.epochs / args.batch_size / ctx.num_workers * 0.9
    history = model.fit(ds.with_options(options), epochs=1, steps_per_epoch=steps, verbose=0)
    ctx.export_saved_model(model, args.export_dir)
    if ctx.job_name == "chief":
        with open(args.export_dir + ".json", "w") as file:
            done = {"steps": int(model.optimizer.iterations.numpy()), "loss": history.history["loss"][-1]}
            json.dump(done, file)
    tf_feed.terminate()


def small_model() -> Any:
    import tensorflow as tf

    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 3, activation="relu", input_shape=(SIDE, SIDE, 1)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(2, activation="softmax"),
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy()
    model.compile(loss=loss, optimizer=tf.keras.optimizers.SGD(0.1), metrics=["accuracy"])
    return model


def examples(files: Any) -> Any:
    """Return a dataset of scaled images and labels from TFRecord files."""
    import tensorflow as tf

    features = {
        "label": tf.io.FixedLenFeature((), tf.int64),
        "image": tf.io.FixedLenFeature((SIDE * SIDE,), tf.int64),
    }

    def parse(record: Any) -> Any:
        example = tf.io.parse_single_example(record, features)
        return tf.reshape(tf.cast(example["image"], tf.float32) / 255.0, (SIDE, SIDE, 1)), example["label"]

    return files.interleave(tf.data.TFRecordDataset).map(parse)


def inference(args: Any, ctx: Any) -> None:
    """Like examples/mnist/keras/mnist_inference.py: each process reads its share of the files."""
    import os

    import numpy as np
    import tensorflow as tf

    assert "TF_CONFIG" not in os.environ
    saved_model = tf.saved_model.load(args.export_dir, tags="serve")
    predict = saved_model.signatures["serving_default"]
    files = tf.data.Dataset.list_files(f"{args.tfrecords}/part-*", shuffle=False)
    ds = examples(files.shard(ctx.num_workers, ctx.worker_num)).batch(10)
    tf.io.gfile.makedirs(args.output)
    with tf.io.gfile.GFile(f"{args.output}/part-{ctx.worker_num:05d}", "w") as output:
        for images, labels in ds:
            predictions = np.argmax(predict(conv2d_input=images)["dense"], axis=1)
            for label, prediction in zip(labels.numpy(), predictions, strict=True):
                output.write(f"{label} {prediction}\n")


def from_files(args: Any, ctx: Any) -> dict[str, Any]:
    """Like examples/mnist/keras/mnist_tf_ds.py: InputMode.TENSORFLOW."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    files = tf.data.Dataset.list_files(ctx.absolute_path(args.tfrecords) + "/part-*", shuffle=False)
    ds = examples(files).repeat().batch(args.batch_size * ctx.num_workers)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    with strategy.scope():
        model = small_model()
    history = model.fit(ds.with_options(options), epochs=2, steps_per_epoch=10, verbose=0)
    return {"who": f"{ctx.job_name}:{ctx.task_index}", "loss": history.history["loss"]}


def predict_rows(args: Any, ctx: Any) -> int:
    """Inference through the cluster: one result for each row."""
    import numpy as np
    import tensorflow as tf

    predict = tf.saved_model.load(args.export_dir).signatures["serving_default"]
    tf_feed = ctx.get_data_feed(train_mode=False)
    count = 0
    while not tf_feed.should_stop():
        batch = tf_feed.next_batch(args.batch_size)
        if len(batch) > 0:
            images = np.reshape([pixels for pixels, _ in batch], (-1, SIDE, SIDE, 1)) / 255.0
            found = np.argmax(predict(conv2d_input=tf.constant(images, tf.float32))["dense"], axis=1)
            labels = [label for _, label in batch]
            tf_feed.batch_results([f"{x} {y}" for x, y in zip(labels, found, strict=True)])
            count += len(batch)
    return count


def main(args: Any) -> dict[str, Any]:
    from pyspark.sql import SparkSession

    from tfspark import TFCluster, TFParallel, dfutil
    from tfspark.pipeline import TFEstimator, TFModel

    spark = SparkSession.builder.appName("mnist_others").getOrCreate()
    sc = spark.sparkContext
    told: dict[str, Any] = {}

    def parse(line: str) -> tuple[list[int], int]:
        values = [int(value) for value in line.split(",")]
        return values[1:], values[0]

    images_labels = sc.textFile(args.images_labels).map(parse)
    df = spark.createDataFrame(images_labels, ["image", "label"])
    args.rows = df.count()
    dfutil.saveAsTFRecords(df, args.tfrecords)
    loaded = dfutil.loadTFRecords(sc, args.tfrecords)
    told["loaded"] = [dfutil.isLoadedDF(loaded), dfutil.isLoadedDF(df), loaded.dtypes, loaded.count()]

    estimator = (
        TFEstimator(train_fn, args)
        .setInputMapping({"image": "image", "label": "label"})
        .setExportDir(args.export_dir)
        .setClusterSize(args.cluster_size)
        .setEpochs(args.epochs)
        .setBatchSize(args.batch_size)
        .setGraceSecs(60)
    )
    model = estimator.fit(loaded)
    assert isinstance(model, TFModel)
    with open(args.export_dir + ".json") as file:
        told["trained"] = json.load(file)
    model.setInputMapping({"image": "conv2d_input"}).setOutputMapping({"dense": "prediction"})
    scaled = df.selectExpr("transform(image, x -> float(x / 255)) as image")
    predicted = model.transform(scaled).collect()
    labels = [row.label for row in df.select("label").collect()]
    hits = [
        int(row.prediction[1] > row.prediction[0]) == label
        for row, label in zip(predicted, labels, strict=True)
    ]
    told["transformed"] = [len(hits), sum(hits) / len(hits)]

    TFParallel.run(sc, inference, args, args.cluster_size)
    written = sc.textFile(args.output).collect()
    told["parallel"] = [len(written), sum(line in ("0 0", "1 1") for line in written) / len(written)]

    cluster = TFCluster.run(
        sc, from_files, args, args.cluster_size, 0, False, TFCluster.InputMode.TENSORFLOW, master_node="chief"
    )
    told["from files"] = cluster.shutdown()

    cluster = TFCluster.run(
        sc, predict_rows, args, args.cluster_size, 0, input_mode=TFCluster.InputMode.SPARK
    )
    results = cluster.inference(images_labels).collect()
    told["inferred by"] = cluster.shutdown()
    told["inferred in order"] = [line.split()[0] for line in results] == [str(label) for label in labels]
    told["inferred"] = [len(results), sum(line in ("0 0", "1 1") for line in results) / len(results)]
    spark.stop()
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images_labels")
    parser.add_argument("--tfrecords")
    parser.add_argument("--export_dir")
    parser.add_argument("--output")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    print("TOLD", json.dumps(main(parser.parse_args())))
