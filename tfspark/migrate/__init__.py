"""TensorFlowOnSpark's names on top of tfspark, for programs that migrate; see docs/migrating.md."""
