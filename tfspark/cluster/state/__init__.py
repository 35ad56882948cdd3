"""What the driver knows: pure, under an injected clock; no sockets, no Spark."""
