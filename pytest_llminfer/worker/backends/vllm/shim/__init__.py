"""Holds the one module that vLLM's own processes find on their path."""
