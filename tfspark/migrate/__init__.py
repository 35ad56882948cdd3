"""TensorFlowOnSpark's names on top of tfspark, for programs that move over; see docs/migrating.md."""
