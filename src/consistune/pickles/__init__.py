"""Pickles read without executing anything: a stack machine, and plain numpy data through it."""
