"""The machine: files, memory, archives, processes, progress."""
