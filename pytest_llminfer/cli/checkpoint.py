"""``llminfer checkpoint``: whether checkpoints on disk are stored as they declare, read from their headers alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_llminfer.cli.console import Parser, say
from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.families.layout.checkpoint import check_checkpoint
from pytest_llminfer.models.stored import read_stored
from pytest_llminfer.spec import QUANTIZATIONS
from pytest_llminfer.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.verdict import Verdict


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer checkpoint`` with these arguments: status 0 if every one is stored as declared, 1 if one is not.

    Raises:
        InvalidSpecError: a quantization that no cell has.
        BadInputError: a path without a checkpoint, or damaged files.
        UnsupportedError: an architecture or a variant of a format that is not known here.
    """
    given = _parser().parse_args(argv)
    if given.quantization is not None and given.quantization not in QUANTIZATIONS:
        raise InvalidSpecError("quantization", given.quantization, QUANTIZATIONS)
    judged = [(path, verdict) for path in given.paths for verdict in check_checkpoint(read_stored(path), given.quantization)]
    if given.json:
        say([json.dumps([_plain(path, verdict) for path, verdict in judged], indent=2)])
    else:
        say([line for path, verdict in judged for line in (path, *str(verdict).splitlines(), "")][:-1])
    return 0 if all(verdict.outcome is Outcome.PASS for _, verdict in judged) else 1


def _parser() -> Parser:
    parser = Parser(
        prog="llminfer checkpoint",
        description="Whether a checkpoint on disk is stored as its configuration declares: every tensor's dtype, shape and bytes, "
        "read from the headers of its files, and where its index says. Nothing is loaded. Status 0: all are; 1: one is not, and "
        "its parameters are named.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a folder with config.json and *.safetensors, or a .gguf file")
    parser.add_argument("--quantization", metavar="FORMAT", help=f"that it should be, of {', '.join(QUANTIZATIONS)}")
    parser.add_argument("--json", action="store_true", help="plain data instead of text")
    return parser


def _plain(path: str, verdict: Verdict) -> dict[str, Any]:
    return {"path": path, **asdict(verdict)}
