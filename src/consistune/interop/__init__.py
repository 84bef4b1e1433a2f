"""Checkpoints of other projects in, exports for other programs out."""
