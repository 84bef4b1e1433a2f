"""Other people's files: checkpoints in, exports out."""
