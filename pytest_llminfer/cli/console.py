"""What subcommands read and write: arguments refused in one line, tables, sizes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a BadInputError, without the usage printed before."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            BadInputError: always, with the message and where to find the usage.
        """
        raise BadInputError(f"{message}; see `{self.prog} --help`")


def say(lines: Iterable[str]) -> None:
    """Print to standard output: what was asked for."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def tell(line: str) -> None:
    """Print to standard error: what happens meanwhile."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def gigabytes(size: float) -> str:
    """Bytes as text: ``1.9 GB``, ``340 MB``."""
    mega = size / 1e6
    if mega >= 1000:  # noqa: PLR2004 - a thousand megabytes are a gigabyte
        return f"{mega / 1000:.1f} GB"
    return f"{mega:.0f} MB" if mega >= 1 or not size else f"{size / 1e3:.0f} kB"
