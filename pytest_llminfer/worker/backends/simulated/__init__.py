"""A NumPy Llama that solves real problems without a framework, and fails on purpose when asked to."""
