"""Functions that suites send to a live transformers model by ``engine.run``: what formats, gradients and files do to it."""
