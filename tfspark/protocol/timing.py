"""Clocks that depend on each other, in seconds. `tests/protocol/test_timing.py` holds their order together.

What a user sets (``heartbeat_timeout``, ``feed_timeout``, ``reservation_timeout``) is not here; its bounds are.
"""

# --- calls ---------------------------------------------------------------------------------------------------------

LONG_POLL_S = 1.0
"""How long a server may hold a call that waits for something; the caller asks again. Short, so that a dead caller costs
nothing, and long enough that a thousand waiting nodes ask a thousand times a second at most."""
CALL_TIMEOUT_S = 30.0
"""A call that is not answered is taken for lost: thirty long polls, as a loaded machine answers seconds late."""
UNREACHED_S = 10.0
"""How long a call is tried again whose connection was reset, as by a firewall or a VPN, or that reached nobody."""
CLOSE_S = 5.0
"""How long the end of a server waits for calls under way: a client that was stopped never ends the one it is in."""

# --- signs of life -------------------------------------------------------------------------------------------------

HEARTBEAT_S = 1.0
"""How often a node task, and a feed task, says that it lives."""
TRAINER_HEARTBEAT_S = 2.0
"""How often a trainer does. Less often: its node task already tells when the process ends."""
HEARTBEAT_TIMEOUT_S = 30.0
"""Silence after which a node is lost, by default: a host that is paused for 20 s, as by a live migration, is not."""
TRAINER_SILENCE_S = 10.0
"""How long a trainer may be silent, whatever ``feed_timeout`` is: on a busy machine the import of TensorFlow keeps all
of its threads waiting for seconds."""
DRIVER_SILENCE_S = 60.0
"""A driver that does not answer for this long is gone; the node ends. Twice as long as a node may be silent: the driver
holds all there is, so nodes are more patient with it than it is with them."""
SOURCE_SILENCE_S = 5.0
"""A source of rows that has not been heard of for this long is taken for dead; before, it is there, though a reader may
not reach it. It beats once a second, on a loaded machine seconds late, and a beat whose connection is reset comes
again."""
SOURCE_UNREACHED_S = 10.0
"""How long a reader tries a source again that it does not reach, and that the driver knows of: its connection may have
been reset. Longer than `SOURCE_SILENCE_S`, so that the driver says first whether it is dead."""

AWAKE_S = 2.0
"""Most that counts as silence of what lies between two looks at the driver's clock, in which it may itself have been
stopped. Two heartbeats: while a node lives the clock is looked at with each."""

# --- whom a failure is blamed on -----------------------------------------------------------------------------------

LOST_PEER_S = 3.0
"""Silence of a node whose peer's collective operation has failed: it is the one that is missed, its host is gone. Three
heartbeats, as the failed operation itself says that somebody is."""
SILENT_PEER_S = 6.0
"""The same of a trainer: three of its heartbeats."""
SETTLE_S = 1.5
"""How long after the first report of a failure others may come in that explain it better: more than a heartbeat."""
LOST_PEER_SETTLE_S = LOST_PEER_S + HEARTBEAT_S
"""The same when nothing but failed collective operations is reported: until a node is silent for `LOST_PEER_S`."""
STACKS_S = 2.5
"""How long trainers have to show their stacks before they are failed: two heartbeats of their node task bring the
request and the answer."""
EXPLAIN_S = 2.0
"""How long after an error of Spark's a node may take to report what was behind it: more than `SETTLE_S`."""

# --- ends ----------------------------------------------------------------------------------------------------------

STOP_GRACE_S = 3.0
"""How long a trainer may take to end once its lifeline is closed."""
STOP_TIMEOUT_S = 15.0
"""How long nodes that are told to stop may take to end in order: a heartbeat until they hear it, their trainer's grace,
and more on a busy machine. Spark kills those that are left, which then cannot remove their files."""
LAST_WORDS_S = 3.0
"""How long a node that has ended tries to reach its driver, which may have gone before it."""
PREEMPTION_GRACE_S = 20.0
"""How long a node that will be taken away waits for a checkpoint: less than the 30 s that Kubernetes gives a pod."""
REPLACEMENT_S = 120.0
"""How long a trainer that replaces another may take to come up: the import of TensorFlow on a loaded machine."""
