"""The command ``llminfer``: one file a subcommand, loaded when it is asked for. Imports no engine and no pytest."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from pytest_llminfer import __version__
from pytest_llminfer.cli.console import tell
from pytest_llminfer.errors import BadInputError, InvalidSpecError, LlminferError
from pytest_llminfer.report.align import align

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBCOMMANDS = {
    "baselines": ("pytest_llminfer.cli.baselines:run", "bring recorded baselines up to date"),
    "checkpoint": ("pytest_llminfer.cli.checkpoint:run", "whether a checkpoint on disk is stored as it declares"),
    "doctor": ("pytest_llminfer.cli.doctor:run", "what can run here, and what is missing"),
    "env": ("pytest_llminfer.cli.env:run", "list, make and remove the environments of engines"),
    "memory": ("pytest_llminfer.cli.memory:run", "what will fit on a GPU, before anything is loaded"),
}
"""Name to where its function lies (it takes the arguments after the name, and returns the exit status) and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Status 0: done; 1: it failed; 2: bad input, with the reason in one line on standard error."""
    listed = "\n".join(align([(f"  {name}", purpose) for name, (_, purpose) in SUBCOMMANDS.items()]))
    parser = argparse.ArgumentParser(
        prog="llminfer",
        description="Beside pytest: the environments of engines, what can run here, and what will fit.",
        epilog=f"subcommands:\n{listed}\n\n`llminfer SUBCOMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="llminfer [--version] [--help] SUBCOMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"pytest-llminfer {__version__}")
    parser.add_argument("subcommand", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    try:
        if not given.subcommand:
            raise BadInputError(f"name a subcommand: {', '.join(SUBCOMMANDS)}")
        if given.subcommand not in SUBCOMMANDS:
            raise InvalidSpecError("subcommand", given.subcommand, SUBCOMMANDS)
        module, _, function = SUBCOMMANDS[given.subcommand][0].partition(":")
        status: int = getattr(importlib.import_module(module), function)(given.arguments)
    except LlminferError as error:
        tell(f"llminfer: {error}")
        return 2 if isinstance(error, (BadInputError, InvalidSpecError)) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain again when it flushes at the end.
        sys.stdout = None
        return 0
    return status
