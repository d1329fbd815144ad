"""Serving: an engine's own server over HTTP."""
