"""Where engines run: interpreters that are there, and isolated environments that are made when they are asked for."""

from __future__ import annotations

from pytest_llminfer.engines.environments.catalogue import EnvironmentInfo, EnvironmentInUseError, list_environments, remove
from pytest_llminfer.engines.environments.making import interpreter

__all__ = ["EnvironmentInUseError", "EnvironmentInfo", "interpreter", "list_environments", "remove"]
