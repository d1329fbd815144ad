"""Shutdown: a stopped engine leaves nothing behind."""
