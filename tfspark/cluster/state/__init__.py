"""The driver's state, under an injected clock: no sockets, no Spark."""
