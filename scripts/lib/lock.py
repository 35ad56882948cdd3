"""Wait until no other setup works on this repository.

Locks an open file, given by its descriptor, for the shell that opened it. The lock lasts until the shell closes the
file or ends for any reason. (The program flock is missing on macOS.)

Usage: lock.py DESCRIPTOR TIMEOUT_S
"""

import fcntl
import signal
import sys

descriptor, timeout_s = int(sys.argv[1]), int(sys.argv[2])
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("tfspark setup: waiting for another setup of this repository to end", file=sys.stderr, flush=True)
    signal.alarm(timeout_s)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
