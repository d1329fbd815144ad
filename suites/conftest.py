"""The suites use this plugin's fixtures, whatever fixtures of the same names the project around them has."""

from __future__ import annotations

from pytest_llminfer.plugin.short_names import *  # noqa: F403 - pytest finds fixtures by the names of this module
