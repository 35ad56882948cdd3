"""tfspark's own training loop: do the driver's jobs until the job ``close``. Runs in the trainer.

Every worker does the same jobs in the same order, as synchronous training requires.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tfspark.protocol.values import Json
from tfspark.training.build import BuildModel
from tfspark.training.evaluator import run_evaluator
from tfspark.training.jobs import job_done, posted_jobs, unless_broken_off
from tfspark.training.ps.servers import serve
from tfspark.training.session import TrainingSession

if TYPE_CHECKING:
    from tfspark.training.context import TrainingContext


def run_jobs(build_model: BuildModel, params: object, context: TrainingContext) -> Json:
    """Do the driver's jobs until ``close``; return this node's summary."""
    if context.role == "evaluator":
        return run_evaluator(build_model, params, context)
    if not context.has_parameter_servers:
        return _do_jobs(TrainingSession(build_model, params, context), context)
    if not context.is_chief:
        return serve(context)
    from tfspark.training.ps.session import ParameterServerSession

    return _do_jobs(ParameterServerSession(build_model, params, context), context)


def _do_jobs(session: TrainingSession, context: TrainingContext) -> Json:
    """Do one job after another with a session's model."""
    summary: Json = {}
    for job in posted_jobs(context):
        if job["kind"] == "build":
            job_done(context, job, {})
        elif job["kind"] == "resume":
            session.resume(job)
            job_done(context, job, {})
        elif job["kind"] == "train":
            with context.activity.busy():
                job_done(context, job, unless_broken_off(functools.partial(session.train, job)))
        elif job["kind"] == "evaluate":
            with context.activity.busy():
                job_done(context, job, unless_broken_off(functools.partial(session.test, job)))
        elif job["kind"] == "begin_anew":
            session = session.renewed(job)
            job_done(context, job, {})
        elif job["kind"] == "export":
            with context.activity.busy():
                job_done(context, job, session.export(job["formats"]))
        elif job["kind"] == "close":
            summary = session.close(job)
    return summary
