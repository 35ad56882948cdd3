"""What all processes agree on: calls, roles, settings, clocks."""
