"""Execution modes: prefill, decode, batches, cached prefixes and preemption compute the same tokens."""
