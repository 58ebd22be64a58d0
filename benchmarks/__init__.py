"""What the methods cost and how they compare: commands that measure, `python -m benchmarks.<name>`."""
