"""Functions that run in a worker, beside the live model."""
