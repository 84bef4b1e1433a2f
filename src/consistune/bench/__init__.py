"""Measurements against peers: `consistune bench` on the user's machine, `benchmarks/` for the documents."""
