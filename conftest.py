"""The plugin comes through its entry point; naming it here again would be an error."""

from __future__ import annotations

pytest_plugins = ["pytester"]
