"""Rounding, near ties and truncated KL. Pure."""
