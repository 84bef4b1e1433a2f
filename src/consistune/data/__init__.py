"""Images in: sources, the prepared format, references by class."""
