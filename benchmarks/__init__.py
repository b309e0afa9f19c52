"""How fast and how large: named workloads × implementations, `python -m benchmarks`."""
