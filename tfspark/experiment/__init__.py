"""YAML experiments: configuration, the run, its report."""
