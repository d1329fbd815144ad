"""Distributions of other people, as a test installs them."""

from __future__ import annotations
