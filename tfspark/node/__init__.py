"""A node: the Spark task that starts, watches and ends a trainer."""
