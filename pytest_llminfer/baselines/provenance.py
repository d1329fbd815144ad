"""Where a record came from: commit, date, command, hardware, versions. Standard library only."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_GIT_TIMEOUT_SECONDS = 10.0
_URL = r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s/@]*@)?(?P<address>\S*)"
# A slash that starts a path: not inside a relative path or a word, except glued to a short option (-c/etc/pytest.ini).
_PATH = r"(?:(?<![\w.~/-])|(?<=^-[A-Za-z]))(?P<path>/[^\s,:;'\"=|()\[\]]*)"
_SECRET = re.compile(r"^(--?[\w-]*(?:key|token|secret|password))(=.*)?$", re.IGNORECASE)
_SECRET_NAME = re.compile(r"[\w-]*(?:key|token|secret|password)", re.IGNORECASE)
_SECRET_IN_JSON = re.compile(r'("[\w-]*(?:key|token|secret|password)"\s*:\s*)"(?:[^"\\]|\\.)*"', re.IGNORECASE)


def provenance(
    *,
    n: int,
    hardware: str,
    versions: Mapping[str, str],
    commit: str | None = None,
    argv: Sequence[str] | None = None,
    directory: Path | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """What stands behind a record.

    n: how many values or items it was made of. hardware: ``Hardware.describe()``, or its key. commit: ``working_commit``,
    asked for here unless given (a caller with many records asks once). argv, directory, now: of this process.
    """
    directory = directory or Path.cwd()
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises for a user without one
    return {
        "commit": working_commit(directory) if commit is None else commit,
        "date": (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command_line(sys.argv if argv is None else argv, directory=directory, home=home),
        "n": n,
        "hardware": hardware,
        "versions": dict(versions),
    }


def working_commit(directory: Path, *, baselines: Path | None = None) -> str:
    """The commit checked out in ``directory``, with "+dirty" if tracked files are modified; "unknown" without git.

    Changes under ``baselines`` do not count: recording one cell after another would call all but the first dirty.
    """
    head, _, top = (_git(directory, "rev-parse", "HEAD", "--show-toplevel") or "").partition("\n")
    if not top:
        return "unknown"
    scope = ["--", ":/"]
    # git refuses a path outside of its tree.
    if baselines is not None and Path(top) in (inside := baselines.resolve()).parents:
        scope.append(f":(top,exclude){inside.relative_to(top)}")
    status = _git(directory, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", *scope)
    return f"{head}+dirty" if status or status is None else head


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", *arguments],  # noqa: S607 - the user's own git
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line(argv: Sequence[str], *, directory: Path, home: Path) -> str:
    """``argv`` in one line that says nothing about the machine it ran on.

    The program is its bare name (``pytest`` for ``python -m pytest`` too), a path under ``directory`` is relative to it, one
    under ``home`` starts with ``~``, of any other absolute path the last component is left. The value of an option that
    ends in key, token, secret or password, alone or in JSON, and the user in a URL, are left out.
    """
    if not argv:
        return ""
    program = PurePosixPath(argv[0])
    words = [program.parent.name if program.name == "__main__.py" else program.name]
    hide_next = False
    for argument in argv[1:]:
        secret = _SECRET.match(argument)
        if hide_next:
            words.append("***")
        elif secret and secret.group(2):
            words.append(f"{secret.group(1)}=***")
        else:
            words.append(_without_places(without_secrets(argument), directory, home))
        hide_next = bool(secret) and not (secret and secret.group(2)) and not hide_next
    return shlex.join(words)


def is_secret(name: str) -> bool:
    """Whether a value of this name is not to be shown: it ends in key, token, secret or password."""
    return _SECRET_NAME.fullmatch(name) is not None


def without_secrets(text: str) -> str:
    """``text`` without the values of JSON fields whose name ends in key, token, secret or password, and the user in a URL."""
    text = _SECRET_IN_JSON.sub(r'\1"***"', text)
    return re.sub(r"([A-Za-z][\w+.-]*://)[^\s/@]*@", r"\1***@", text)


def _without_places(argument: str, directory: Path, home: Path) -> str:
    root = Path("/")

    def shorten(match: re.Match[str]) -> str:
        if (scheme := match["scheme"]) and scheme != "file://":
            return f"{scheme}{'***@' if match['user'] else ''}{match['address']}"
        path = PurePosixPath(match["address"] if scheme else match["path"])
        for place, name in ((directory, ""), (directory.resolve(), ""), (home, "~")):
            # Everything is under the root directory, which is some containers' home.
            if place != root and path.is_relative_to(place):
                return str(name / path.relative_to(place))
        return f".../{path.name}" if path.name else "/"

    return re.sub(f"{_URL}|{_PATH}", shorten, argument)
