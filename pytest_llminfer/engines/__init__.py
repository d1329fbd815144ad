"""The pytest side of an engine: start its worker, ask it, end it."""
