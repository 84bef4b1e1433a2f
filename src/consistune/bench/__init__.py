"""Measurements against peers: `consistune bench` on the user's machine, and the parts of `benchmarks/`."""
