"""What all processes share: calls, roles, settings, clocks."""
