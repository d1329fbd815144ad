"""Regression tests for LLM inference stacks: a pytest plugin."""

__version__ = "0.1.0"
