"""The driver's jobs for tfspark's own training loop, one after another. Runs in the trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tfspark.errors import BrokenOffError
from tfspark.protocol.values import Json

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext

logger = logging.getLogger("tfspark")


def posted_jobs(context: NodeContext) -> Iterator[Json]:
    """Yield all jobs, waiting for each; ``close`` is the last. If the driver is lost, the node ends this process."""
    done = 0
    while True:
        job = context.control.call("next_job", after=done)
        if job["kind"] == "wait":
            continue
        yield job
        if job["kind"] == "close":
            return
        done = job["job"]


def job_done(context: NodeContext, job: Json, result: object) -> None:
    """Report this node's result of a job to the driver."""
    context.control.call("job_done", job=job["job"], node=context.node.index, result=result)


def unless_broken_off(work: Callable[[], Json]) -> Json:
    """Do a job's work; return its result, which is empty if the driver has broken it off."""
    try:
        return work()
    except BrokenOffError as error:
        logger.warning("%s", error)
        return {}
