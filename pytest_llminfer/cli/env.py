"""``llminfer env``: list, make and remove the environments that engines run in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.cli.console import Parser, gigabytes, say, tell
from pytest_llminfer.engines import environments
from pytest_llminfer.engines.environments.cache import environments_folder
from pytest_llminfer.engines.environments.recipes import Requirement
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.report.align import align

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_llminfer.engines.environments import EnvironmentInfo


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer env`` with these arguments; returns the exit status."""
    parser = Parser(prog="llminfer env", description="The environments that engines run in, made on demand and kept in the cache.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|create|remove")
    actions.add_parser("list", help="what there is")
    create = actions.add_parser("create", help="make one now, or find it; prints its interpreter")
    create.add_argument("requirement", metavar="REQUIREMENT", help="NAME==VERSION, as in vllm==0.33.0")
    remove = actions.add_parser("remove", help="remove some, or all")
    remove.add_argument("names", nargs="*", metavar="NAME", help="a name from the list, or NAME==VERSION")
    remove.add_argument("--all", action="store_true", help="all of them")
    given = parser.parse_args(argv)
    return {"list": _list, "create": _create, "remove": _remove}[given.action](given)


def _list(_given: argparse.Namespace) -> int:
    found = environments.list_environments()
    say([f"in {environments_folder()}"])
    if not found:
        say(["no environment yet; `llminfer env create vllm==0.33.0` makes one, and so does `pytest --engine=vllm==0.33.0`"])
        return 0
    rows = [["name", "python", "size", "made", "state"]]
    rows += [[each.folder, each.python, gigabytes(each.size_bytes), each.created[:10] or "-", _state(each)] for each in found]
    total = f"{len(found)} environment{'s' * (len(found) != 1)}, {gigabytes(sum(each.size_bytes for each in found))}"
    say([*align(rows, rule="-"), total])
    return 0


def _state(environment: EnvironmentInfo) -> str:
    return ("ready" if environment.complete else "half made") + ", in use" * environment.in_use


def _create(given: argparse.Namespace) -> int:
    # Spelled wrong, it would be looked up as a command.
    Requirement.parse(given.requirement)
    # Whoever makes one by hand may mean it for another machine that shares this folder.
    say([environments.interpreter(given.requirement, progress=_tell, without_gpu=True)])
    return 0


def _tell(phase: str, done: int, total: int) -> None:
    tell(f"[{done}/{total}] {phase}")


def _remove(given: argparse.Namespace) -> int:
    if bool(given.names) == given.all:
        raise BadInputError("name the environments to remove, or give --all; `llminfer env list` shows them")
    removed = environments.remove(None if given.all else given.names)
    say([f"removed {name}" for name in removed] or ["no environment to remove"])
    return 0
