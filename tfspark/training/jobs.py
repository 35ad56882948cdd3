"""What the driver posts for tfspark's own loop, one job after the other. Runs in the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfspark.protocol.values import Json

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext


def posted_jobs(context: NodeContext) -> Iterator[Json]:
    """Yield every job, waiting for the next; ``close`` is the last. The node ends this process if the driver goes."""
    done = 0
    while True:
        job = context.control.call("next_job", after=done)
        if job["kind"] == "wait":
            continue
        yield job
        if job["kind"] == "close":
            return
        done = job["job"]


def job_done(context: NodeContext, job: Json, result: Any) -> None:
    """Tell the driver what a job came to on this node."""
    context.control.call("job_done", job=job["job"], node=context.node.index, result=result)
