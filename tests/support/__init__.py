"""Helpers of the tests: real Spark clusters, exact test data, and a guard against leaks."""
