"""Divergence: next-token distributions beside a reference, by truncated KL."""
