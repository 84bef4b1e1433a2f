"""A model assessed: drawn from, measured, searched for its best setting; what `consistune evaluate` does."""
