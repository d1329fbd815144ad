"""Throughput: as fast as it was."""
