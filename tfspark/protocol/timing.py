"""Clocks that depend on each other, in seconds. `tests/protocol/test_timing.py` checks their order.

Values that users set (``heartbeat_timeout``, ``feed_timeout``, ``reservation_timeout``) are not here; their bounds are.
"""

# --- calls ---------------------------------------------------------------------------------------------------------

LONG_POLL_S = 1.0
"""Maximum time for which a server holds a waiting call; the caller then asks again. It is short, so that a dead caller
costs nothing. It is long enough that a thousand waiting nodes cause at most a thousand calls per second."""
CALL_TIMEOUT_S = 30.0
"""A call without a reply after this time is lost. Thirty long polls, because a busy machine answers seconds late."""
UNREACHED_S = 10.0
"""Time for which a call is repeated if its connection was reset, as by a firewall or a VPN, or could not be made."""
CLOSE_S = 5.0
"""Time that a closing server waits for current calls: a stopped client never ends its call."""

# --- heartbeats -------------------------------------------------------------------------------------------------

HEARTBEAT_S = 1.0
"""Interval of the heartbeats of node tasks and feed tasks."""
TRAINER_HEARTBEAT_S = 2.0
"""Interval of a trainer's reports. It is longer, because the node task reports at once when the process ends."""
HEARTBEAT_TIMEOUT_S = 30.0
"""Default silence after which a node is lost. A host that pauses for 20 s, as in a live migration, is not lost."""
TRAINER_SILENCE_S = 10.0
"""Minimum silence after which a trainer is lost, whatever ``feed_timeout`` is. On a busy machine, the import of
TensorFlow blocks all threads of a process for seconds."""
DRIVER_SILENCE_S = 60.0
"""Silence after which the driver is lost, and nodes end. Twice the time for a node: only the driver has the state, so
nodes wait longer for it than it waits for them."""
SOURCE_SILENCE_S = 5.0
"""Silence after which a source of rows is lost. Until then it counts as up, even if a reader cannot reach it. It sends
a heartbeat once a second, but seconds late on a busy machine, and repeats one whose connection was reset."""
SOURCE_UNREACHED_S = 10.0
"""Time for which a reader tries an unreachable source again while the driver knows it: the connection may have been
reset. It is longer than `SOURCE_SILENCE_S`, so that the driver first says whether the source is lost."""

AWAKE_S = 2.0
"""Maximum silence that is counted between two looks at the driver's clock, because the driver may have been stopped
meanwhile. Two heartbeats: while a node is up, each heartbeat causes a look at the clock."""

# --- which node to blame for a failure -------------------------------------------------------------------------------

LOST_PEER_S = 3.0
"""Silence after which a node is lost if a collective operation of a peer has failed: its host is gone. Three heartbeats
are enough, because the failed operation already says that some node is missing."""
SILENT_PEER_S = 6.0
"""The same for a trainer: three of its reports."""
SETTLE_S = 1.5
"""Time after the first report of a failure in which others may arrive that explain it better: over a heartbeat."""
LOST_PEER_SETTLE_S = LOST_PEER_S + HEARTBEAT_S
"""The same if all reports are failed collective operations: until a node is silent for `LOST_PEER_S`."""
STACKS_S = 2.5
"""Time that trainers have to send their stacks before they fail: two heartbeats of their node task carry the request
and the reply."""
EXPLAIN_S = 2.0
"""Time after an error from Spark in which a node may report the cause: more than `SETTLE_S`."""

# --- ends ----------------------------------------------------------------------------------------------------------

STOP_GRACE_S = 3.0
"""Time that a trainer has to end after its lifeline was closed."""
STOP_TIMEOUT_S = 15.0
"""Time that nodes have to end after they are told to stop: one heartbeat until they know, the grace of their trainer,
and more on a busy machine. Spark kills the rest, which then cannot remove their files."""
TOLD_S = 2 * HEARTBEAT_S
"""Time for which the server of an incarnation that was lost still answers, so that its feed tasks learn by their next
heartbeat that they must end. Until then they hold the slots that the next incarnation may need."""
LAST_WORDS_S = 3.0
"""Time for which an ended node tries to reach its driver, which may have ended first."""
PREEMPTION_GRACE_S = 20.0
"""Time that a node that will be taken away waits for a checkpoint: less than the 30 s that Kubernetes gives a pod."""
REPLACEMENT_S = 120.0
"""Time that a replacing trainer has to start: it imports TensorFlow, perhaps on a busy machine."""
