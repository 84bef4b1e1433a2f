"""Metrics of samples: features, one object for each metric, and the suite that feeds them."""
