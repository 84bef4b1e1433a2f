"""Measures: features, distances, memorisation."""
