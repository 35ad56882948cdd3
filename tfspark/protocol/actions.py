"""The calls to the driver's server: who sends each, its request and its reply.

``python -m tfspark.protocol.actions docs/architecture.md`` updates the table of that page. A test compares all callers
and handlers with it. Every action is idempotent: a repeated call does not change the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfspark.doc_parts import renew_pages, renewed

BEGIN, END = "<!-- actions: made by tfspark.protocol.actions -->", "<!-- actions end -->"


@dataclass(frozen=True)
class Action:
    """One kind of call.

    Attributes:
        name: name of the Flight action.
        caller: the process that sends it.
        request: key -> its meaning; empty if the name is clear. A key that ends in ``?`` is optional.
        reply: the keys of the reply; empty if there are none.
    """

    name: str
    caller: str
    request: Mapping[str, str]
    reply: str = ""

    @property
    def keys(self) -> frozenset[str]:
        """Keys that a request may have."""
        return frozenset(key.removesuffix("?") for key in self.request)

    @property
    def required(self) -> frozenset[str]:
        """Keys that a request must have."""
        return frozenset(key for key in self.request if not key.endswith("?"))


ACTIONS = (
    Action(
        "register",
        "node task",
        {
            "node": "",
            "host": "",
            "port": "",
            "versions": "",
            "executor?": "Spark's number of the executor",
            "task?": "a name that the task gives itself",
        },
        "`action` go with `attempt`, and with `port` if the node replaces a lost one; or stop",
    ),
    Action(
        "assignment", "node task", {"node": "", "attempt": ""}, "`action` wait, stop, or go with `tf_config`"
    ),
    Action(
        "heartbeat",
        "node task, every second",
        {
            "node": "",
            "attempt": "",
            "log": "new lines, 500 at most",
            "preempted?": "why the node will end soon",
        },
        "`stop`; `stacks`: ask the trainer for the stacks of its threads",
    ),
    Action(
        "node_ended",
        "node task",
        {
            "node": "",
            "attempt": "",
            "cause": "empty if there was no error",
            "log": "",
            "log_tail": "last 100 lines",
        },
    ),
    Action(
        "trainer_lost",
        "node task",
        {"node": "", "attempt": "", "cause": ""},
        "`attempt` of the trainer that replaces it; 0: none does",
    ),
    Action(
        "trainer_alive",
        "trainer, every 2 s",
        {
            "node": "",
            "steps": "so far",
            "activity": "`busy`, `waiting` for rows or another process, or `idle`",
        },
    ),
    Action("trainer_ended", "trainer", {"node": "", "result": "JSON"}),
    Action(
        "trainer_failed",
        "trainer",
        {"node": "", "cause": "", "traceback": "", "kind": "see `FailureKind`"},
    ),
    Action("report", "trainer", {"node": "", "event": "", "fields": ""}),
    Action(
        "next_job",
        "trainer",
        {"after": "number of the last job done"},
        "`kind` wait, or the job: `job`, `kind` and its fields",
    ),
    Action("job_done", "trainer", {"job": "", "node": "", "result": ""}),
    Action(
        "sum",
        "trainer",
        {"key": "", "rank": "", "of": "", "values": "metric states; none once they have arrived"},
        "`status` wait, again (send the values again), or ok with the added `values`",
    ),
    Action(
        "arrive",
        "worker",
        {"number": "of the meeting", "rank": ""},
        "`status` wait, or ok with `save` (this step's state), `steps` (to the next meeting)",
    ),
    Action(
        "source_up",
        "feed task",
        {
            "stream": "",
            "index": "of the pass",
            "partition": "",
            "location": "",
            "host": "",
            "name": "the partition's own number",
            "attempt?": "",
        },
        "`action` serve with `source`, `skip`, `want_sample`; wait; or stop with `rows`, and `moved` if its rows "
        "may be in other places than in an earlier attempt",
    ),
    Action("offer_sample", "feed task", {"stream": "", "sample": "first row, base64 Arrow"}),
    Action(
        "source_alive",
        "feed task, every second",
        {"source": "", "pulls?": "so far", "rows?": "once Spark has delivered all"},
        "`stop`; `moves`: grows while readers pull from any source of the stream, or trainers end steps; `lost`: "
        "lost readers",
    ),
    Action(
        "source_there",
        "trainer that cannot reach it",
        {"source": ""},
        "`there`: the source is up, only the connection was lost",
    ),
    Action("source_failed", "feed task that fails", {"source": ""}),
    Action(
        "partition_done",
        "feed task",
        {
            "stream": "",
            "index": "",
            "partition": "",
            "rows": "",
            "stopped?": "the source, if it was asked to stop",
        },
        "`retry`: Spark must start the task again",
    ),
    Action(
        "describe",
        "trainer",
        {"stream": ""},
        "`status` wait; broken_off with `why`; or ok with `description` and `sample`",
    ),
    Action(
        "lease",
        "trainer",
        {
            "stream": "",
            "index": "",
            "rank": "",
            "host": "",
            "held": "",
            "after": "",
            "found?": "numbers of the offered files that it can read",
        },
        "`status` source with `source`, `location`, `partition`, `name`, `rows_before`, `keep`; wait; look with "
        "`offer` (files of an earlier training); stored with `given` (the file) and `mixed` (in another order); end; "
        "or closed with `passes` and `broken_off` (why)",
    ),
    Action("release", "trainer", {"source": "", "rank": "", "delivered": "row intervals", "gone": ""}),
    Action(
        "agree",
        "trainer",
        {"stream": "", "index": "", "rank": "", "steps": "", "ended": "", "rows": "", "stored": "file"},
        "`steps`, `final`, `closed`, `broken_off` (why)",
    ),
    Action(
        "end_pass",
        "chief",
        {
            "stream": "",
            "index": "",
            "seen": "readers whose steps have returned",
            "ended": "readers that have no more rows",
        },
        "`lost`: the lost readers among those seen; `broken_off` (why)",
    ),
    Action(
        "next_rows",
        "trainer",
        {"stream": "", "index": "", "rank": "", "host": "", "held": "offers that the reader has"},
        "`status` pass with `description`; partition with `offer`, `location`; wait; or end with `most_rows`",
    ),
    Action("leave", "trainer", {"stream": "", "rank": "", "index": "", "rows": ""}),
    Action("offer_partition", "inference task", {"stream": "", "location": "", "host": ""}, "`offer`"),
    Action("await_reader", "inference task", {"offer": ""}, "`taken`, `stop`, `idle_s`"),
    Action("partition_inferred", "inference task", {"offer": ""}),
)
"""All actions, in the order in which a node and then a row causes them."""


def table() -> str:
    """Return the actions as a table in Markdown."""
    rows = [f"| `{a.name}` | {a.caller} | {_request(a)} | {a.reply or '-'} |" for a in ACTIONS]
    return "\n".join(["| action | caller | request | reply |", "|---|---|---|---|", *rows])


def _request(action: Action) -> str:
    return ", ".join(
        f"`{key.removesuffix('?')}`" + (f" ({note})" if note else "") for key, note in action.request.items()
    )


def renew(page: str) -> str:
    """Return a page with an updated table between its two marks."""
    return renewed(page, BEGIN, END, table())


if __name__ == "__main__":
    renew_pages(renew)
