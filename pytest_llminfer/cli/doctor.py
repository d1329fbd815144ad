"""``llminfer doctor``: which engine can run in which interpreter, and what is missing for the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.cli import machine
from pytest_llminfer.cli.console import Parser, say, tell
from pytest_llminfer.cli.diagnosis import MISSING, Finding, Place, diagnose
from pytest_llminfer.engines.environments import list_environments
from pytest_llminfer.engines.launchers.local import default_threads
from pytest_llminfer.engines.profiles import engine_of, names, profile
from pytest_llminfer.errors import BadInputError, LlminferError
from pytest_llminfer.hardware import detect
from pytest_llminfer.report.align import align

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.profiles.base import Profile
    from pytest_llminfer.hardware import Hardware

PROBE = Path(__file__).with_name("probe.py")
WIDTH = 98
OWN = "this Python"
_AT_ONCE = 2
_LABEL = 34


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer doctor`` with these arguments: status 0 if an engine can run, 1 if none can."""
    parser = Parser(
        prog="llminfer doctor",
        description="Import every engine for real, in this interpreter and in every environment, and say what is missing. "
        "Status 0: at least one engine can run (the simulated one counts only if it is named); 1: none can.",
    )
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(names())}; all of them unless given")
    parser.add_argument("--environment", action="append", default=[], metavar="PYTHON", help="examine this interpreter too")
    parser.add_argument("--json", action="store_true", help="plain data instead of a table")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for one import (default: %(default)s)")
    given = parser.parse_args(argv)
    profiles = _profiles(given.engines)
    hardware = detect()
    pairs = _pairs(profiles, [_given_place(path) for path in given.environment])
    if not given.json:
        tell(f"importing engines in {len({place.interpreter for _, place in pairs})} interpreters ...")
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = list(threads.map(lambda pair: ask(profiles[pair[0]], pair[1], timeout_seconds=given.timeout), pairs))
    found = [diagnose(profiles[engine], place, answer, hardware) for (engine, place), answer in zip(pairs, answers, strict=True)]
    found = _worth_telling(found)
    able = any(each.runs for each in found if not profiles[each.engine].for_tests or each.engine in given.engines)
    _print(found, hardware, able=able, as_json=given.json)
    return 0 if able else 1


def _profiles(named: Sequence[str]) -> dict[str, Profile]:
    """The engines to look for: those named, or all of which the profile says what to look for.

    Raises:
        InvalidSpecError: no such engine. UnsupportedError: one that is named, and whose profile does not say.
    """
    found = {}
    for name in dict.fromkeys(named or names()):
        try:
            found[name] = profile(name)
            found[name].installed_as()
        except LlminferError:
            if named:
                raise
            found.pop(name, None)
    return found


def ask(engine: Profile, place: Place, *, timeout_seconds: float) -> dict[str, Any]:
    """What ``probe.examine`` says about ``engine`` in the interpreter of ``place``; ``error`` if it ends without an answer."""
    known = engine.installed_as()
    facts = {"distributions": known.distributions, "packages": known.modules, "attribute": known.attribute}
    dropped = set() if place.is_own else {"PYTHONHOME", "PYTHONPATH"}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    try:
        process = subprocess.Popen(  # noqa: S603 - an interpreter that the user has
            [place.interpreter, str(PROBE), json.dumps(facts)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={"OMP_NUM_THREADS": default_threads(), **inherited},
            start_new_session=True,
        )
    except OSError as error:
        return {"error": f"cannot start {place.interpreter}: {error.strerror}"}
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"the import did not end within {timeout_seconds:g} s"}
    finally:
        # The whole group: an engine's import may have started processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.poll() is None:
            process.communicate()
    with contextlib.suppress(ValueError):
        answer = json.loads(output)
        if isinstance(answer, dict):
            return answer
    last = errors.rstrip().rpartition("\n")[2]
    return {"error": f"the interpreter ended with status {process.returncode} in the import; last: {last or '(nothing)'}"}


def _pairs(profiles: Mapping[str, Profile], given: list[Place]) -> list[tuple[str, Place]]:
    engines = tuple(profiles)
    own = Place(OWN, sys.executable)
    pairs = [(engine, own) for engine in engines]
    for environment in list_environments(sizes=False):
        engine = engine_of(environment.name)
        if engine in engines and environment.complete:
            pairs.append((engine, Place(environment.requirement, str(environment.interpreter), environment.requirement)))
    pairs += [(engine, place) for place in given for engine in engines if not profiles[engine].for_tests]
    return sorted(pairs, key=lambda pair: engines.index(pair[0]))


def _worth_telling(found: list[Finding]) -> list[Finding]:
    """Leave out the engines that another interpreter lacks, unless it has none at all: it was made for one of them."""
    filled = {each.place for each in found if each.state != MISSING} - {OWN}
    return [each for each in found if each.state != MISSING or each.place not in filled]


def _given_place(path: str) -> Place:
    found = shutil.which(str(Path(path).expanduser()) if path.startswith("~") else path)
    if found is None:
        raise BadInputError(f"--environment {path} is no program that can be run; give the path of a Python")
    return Place(path, os.path.abspath(found))


def _print(found: list[Finding], hardware: Hardware, *, able: bool, as_json: bool) -> None:
    facts = machine.describe(hardware)
    notes = machine.notes(facts)
    if as_json:
        document = {
            "machine": facts,
            "engines": [each.to_dict() for each in found],
            "notes": [{"note": note, "mend": mend} for note, mend in notes],
            "ok": able,
        }
        say([json.dumps(document, indent=2)])
        return
    say([*machine.head(facts, hardware), "", *_engines(found), ""])
    for note, mend in notes:
        say([*_wrapped("note:", note, 0), *_wrapped("mend:", mend, 2)])
    names = sorted({each.engine for each in found if each.runs})
    say([f"can run: {', '.join(names)}" if names else "no engine can run"])


def _engines(found: list[Finding]) -> list[str]:
    elsewhere = {each.engine for each in found if each.runs}
    heading = ["engine", "where", "version", "torch", "CUDA", "GPUs", "state"]
    rows = [
        [
            each.engine,
            each.place if len(each.place) <= _LABEL else f"…{each.place[1 - _LABEL :]}",
            each.version or "-",
            each.torch or "-",
            each.cuda or "-",
            str(each.gpus) if each.torch else "-",
            each.state + (f" {each.seconds:.1f} s" if each.runs else ""),
        ]
        for each in found
    ]
    title, rule, *lines = align([heading, *rows], rule="-")
    shown = [title, rule]
    for each, line in zip(found, lines, strict=True):
        shown.append(line)
        # What another interpreter has is not missing.
        if each.state == MISSING and each.engine in elsewhere:
            continue
        if each.reason and each.state != MISSING:
            shown += _wrapped("why:", each.reason, 4)
        # Not wrapped: they are there to be copied.
        shown += [f"    {word} {command}" for word, command in zip(("mend:", "or:  "), each.mend, strict=False)]
    return shown


def _wrapped(word: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent + word + " ",
        subsequent_indent=" " * (indent + len(word) + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )
