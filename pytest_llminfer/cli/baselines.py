"""``llminfer baselines``: what is recorded, brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.baselines.migrate import plan
from pytest_llminfer.cli.console import Parser, say
from pytest_llminfer.errors import BadInputError, BaselineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llminfer.baselines.migrate import Step


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer baselines`` with these arguments: status 1 if some file stays as it is and should not."""
    given = _parser().parse_args(argv)
    folder = Path(given.folder)
    if not folder.is_dir():
        raise BadInputError(f"there is no folder {folder}")
    steps, problems = plan(folder)
    if given.write:
        for step in steps:
            try:
                step.take()
            except OSError as error:
                raise BaselineError(f"{step.path} cannot be written: {error.strerror or error}") from error
    say([line for step in steps for line in _lines(step, folder)])
    say([f"not migrated: {problem}" for problem in problems])
    files = f"{len(steps)} file{'s' * (len(steps) != 1)}"
    if not steps:
        say(["nothing to migrate"])
    else:
        say([f"{files} migrated" if given.write else f"{files} to migrate; nothing is written yet: add --write"])
    return 1 if problems else 0


def _lines(step: Step, folder: Path) -> Iterator[str]:
    was = [str(source.relative_to(folder)) for source in step.sources if source != step.path]
    yield " and ".join(was) + " → " * bool(was) + str(step.path.relative_to(folder))
    for old, new in sorted(step.names.items()):
        if old != new:
            yield f"    {old} → {new}"


def _parser() -> Parser:
    parser = Parser(prog="llminfer baselines", description="Recorded baselines, without running anything.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    migrate = actions.add_parser(
        "migrate",
        help="bring records of older versions up to date",
        description="Bring records of older versions up to date. Entries get the names of what was asked for (auto stays auto), "
        "which the command in their provenance tells; the dtypes that they were named after become conditions. What was measured, "
        "its conditions and its provenance are kept. Without --write nothing is changed.",
    )
    migrate.add_argument("folder", metavar="FOLDER", nargs="?", default="baselines", help="of the baselines (default: baselines)")
    migrate.add_argument("--write", action="store_true", help="change the files; without it they are only listed")
    return parser
