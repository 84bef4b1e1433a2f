"""A CUDA device that is not there: tests of GPU code on a machine without a GPU."""
