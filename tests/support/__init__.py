"""What the tests stand on: real Spark clusters, exact test data, and a guard against leaks."""
