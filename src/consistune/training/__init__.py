"""The training engine: state, loop, averages, checkpoints."""
