"""Measurements against named peers: `sct bench` on the user's machine, `benchmarks/` for the documents."""
