"""Feed a DStream to a map function that stops after 21 rows, three batches of seven. Prints the rows as JSON."""

from __future__ import annotations

import json
import warnings


def main() -> None:
    from migrate.rows import collect
    from pyspark import SparkConf, SparkContext
    from pyspark.streaming import StreamingContext

    from tfspark import TFCluster

    sc = SparkContext(conf=SparkConf().setAppName("streaming"))
    warnings.simplefilter("ignore", FutureWarning)  # Spark calls DStreams legacy.
    ssc = StreamingContext(sc, 1)
    stream = ssc.queueStream([sc.parallelize(range(10), 2), sc.parallelize(range(10, 21), 1)])
    cluster = TFCluster.run(sc, collect, [21], 1, 0, input_mode=TFCluster.InputMode.SPARK)
    cluster.train(stream)
    ssc.start()
    nodes = cluster.shutdown(ssc)
    print("ROWS", json.dumps(nodes["worker 0"]))
    sc.stop()


if __name__ == "__main__":
    main()
