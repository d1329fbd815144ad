"""Parallelism: several accelerators answer as one does."""
