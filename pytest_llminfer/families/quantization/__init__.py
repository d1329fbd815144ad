"""Quantization: what a format loses, and what it must not."""
