"""`consistune evaluate`: draw samples from a model, measure them, search the best setting of its sampler."""
