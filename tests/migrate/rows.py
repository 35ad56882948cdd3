"""Map functions that read rows from a data feed, without TensorFlow."""

from __future__ import annotations

from typing import Any


def squares(args: Any, ctx: Any) -> int:
    """Give the feed the square of each row, and the results `args["more"]` after each batch; return the row count."""
    feed = ctx.get_data_feed(False, args.get("qname", "input"))
    count = 0
    while not feed.should_stop():
        batch = feed.next_batch(10)
        if batch:
            results = [row * row for row in batch] + args.get("more", [])
            feed.batch_results(results)
            count += len(batch)
    return count


def collect(args: Any, ctx: Any) -> list[Any]:
    """Return the rows; stop as soon as this worker has the number of rows that `args` lists for it."""
    from tfspark import TFNode

    feed = TFNode.DataFeed(ctx.mgr)
    rows: list[Any] = []
    while not feed.should_stop():
        rows += feed.next_batch(7)
        if args is not None and len(rows) >= args[ctx.executor_id]:
            feed.terminate()
            assert feed.should_stop()
            assert feed.next_batch(1) == []
    return rows


def take_some(args: Any, ctx: Any) -> int:
    """Take `args` rows and return without `terminate`."""
    feed = ctx.get_data_feed()
    return len(feed.next_batch(args))


def return_at_once(args: Any, ctx: Any) -> None:
    del args, ctx


def fails_at_row(args: Any, ctx: Any) -> None:
    feed = ctx.get_data_feed(False)
    while not feed.should_stop():
        for row in feed.next_batch(10):
            if row == args:
                raise ValueError(f"row {row} is no good")


def describe_context(args: Any, ctx: Any) -> dict[str, Any]:
    """Return the values of the context."""
    import os
    import sys

    from tfspark import TFNode

    return {
        "argv": sys.argv if isinstance(args, list) else None,
        "who": [ctx.job_name, ctx.task_index, ctx.executor_id, ctx.worker_num, ctx.num_workers],
        "jobs": {job: len(nodes) for job, nodes in ctx.cluster_spec.items()},
        "paths": [ctx.absolute_path("a"), TFNode.hdfs_path(ctx, "/b"), ctx.absolute_path("s3a://c/d")],
        "working_dir": ctx.working_dir,
        "default_fs": ctx.defaultFS,
        "has_socket": ctx.tmp_socket is not None,
        "has_config": "TF_CONFIG" in os.environ,
        "pid": os.getpid(),
    }


def evaluate_for_ever(args: Any, ctx: Any) -> str:
    """Run as a sidecar evaluator that never returns."""
    import threading

    del args
    if ctx.job_name == "evaluator":
        threading.Event().wait()
    return str(ctx.job_name)
