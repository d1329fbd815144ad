"""Messages that name options, as this session has them: where a project has ``--model``, ours is ``--llminfer-model``."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.plugin.command_line import BY_FLAG, OURS, PARSER, is_taken

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def working(message: str, config: pytest.Config) -> str:
    """A message with every short option of ours that is the project's here by the name that is ours alone."""

    def named(match: re.Match[str]) -> str:
        option = BY_FLAG.get(match[0])
        return option.canonical if option is not None and _is_theirs(match[0], config) else match[0]

    return _FLAG.sub(named, message)


@contextlib.contextmanager
def in_usage_errors(config: pytest.Config) -> Iterator[None]:
    """The same for what is raised meanwhile."""
    try:
        yield
    except pytest.UsageError as error:
        raise pytest.UsageError(*(working(str(line), config) for line in error.args)) from None


def _is_theirs(flag: str, config: pytest.Config) -> bool:
    return PARSER in config.stash and flag not in config.stash.get(OURS, ()) and is_taken(config.stash[PARSER], flag)
