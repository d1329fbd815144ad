"""Recorded expectations: what a record is, where it came from, and where it is kept."""
