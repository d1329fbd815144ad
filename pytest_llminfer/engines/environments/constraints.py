"""The constraints that a user set for every installation: which they are, and which setting of pip or uv brought each one in."""

from __future__ import annotations

import ast
import configparser
import os
import re
import tomllib
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from pytest_llminfer.engines.environments.recipes import CONSTRAINTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_KEYS = ("constraint", "requirement")
_CONFIGURED = re.compile(rf"^(?P<section>:env:|install|global)\.(?P<key>{'|'.join(_KEYS)})=(?P<value>['\"].*['\"])$", re.MULTILINE)
_LOADED = re.compile(r"^For variant '(global|user|site|env)', will try loading '(.*)'$", re.MULTILINE)
# Both as pip has them, the strongest first: https://pip.pypa.io/en/stable/topics/configuration/#precedence-override-order
_SECTIONS = (":env:", "install", "global")
_VARIANTS = ("env", "site", "user", "global")
_INCLUDED = re.compile(r"(?:-c|--constraint|-r|--requirement)(?:\s+|=)(.+)")
_SCHEME = re.compile(r"([a-z]+):", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting by which a user names files of constraints.

    Attributes:
        name: As it is shown: ``PIP_CONSTRAINT``, or ``global.constraint of /etc/pip.conf``.
        key: What the lines of its files are: ``constraint`` or ``requirement``.
        way_out: How to do without it, as part of a sentence.
        files: Paths and URLs as they are written; empty where the setting holds the constraints itself.
    """

    name: str
    key: str
    way_out: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constraint:
    """One line that a user wrote.

    Attributes:
        requirement: The line, parsed.
        text: The line as it is shown, without secrets.
        place: Where it stands: the file and the line, or the setting itself.
        setting: The setting that brought it in.
    """

    requirement: Requirement
    text: str
    place: str
    setting: Setting

    def __str__(self) -> str:
        named = f", which {self.setting.name} names" if self.setting.files else ""
        return f"the {self.setting.key} {self.text} from {self.place}{named}"


def without_secrets(text: str) -> str:
    """``text`` with the credentials and the query of every URL in it as ``****``."""
    text = re.sub(r"(\w://)[^/\s]*@", r"\1****@", text)
    return re.sub(r"(\w://[^\s?'\"]*\?)[^\s'\"]+", r"\1****", text)


def settings_of_pip(listing: str) -> list[Setting]:
    """The settings that bring constraints into every ``pip install``.

    listing: what ``pip config list --verbose`` prints: the files that it reads, and the value of each setting.
    """
    found = {(each["section"], each["key"]): ast.literal_eval(each["value"]) for each in _CONFIGURED.finditer(listing)}
    settings = []
    for key in _KEYS:
        section = next((section for section in _SECTIONS if found.get((section, key), "").strip()), "")
        if section:
            name = f"PIP_{key.upper()}" if section == ":env:" else f"{section}.{key} of {_file_of(section, key, listing)}"
            files = tuple(found[section, key].split())
            settings.append(Setting(name, key, _way_out_of_pip(key), files))
    return settings


def settings_of_uv(environ: Mapping[str, str]) -> list[Setting]:
    """The environment variable by which files of constraints come into every ``uv pip install``."""
    files = tuple(environ.get("UV_CONSTRAINT", "").split())
    return [Setting("UV_CONSTRAINT", "constraint", f"set UV_CONSTRAINT={os.devnull} to do without", files)] if files else []


def setting_of_ours(environ: Mapping[str, str]) -> list[Setting]:
    """The file that the user's ``LLMINFER_CONSTRAINTS`` names."""
    given = environ.get(CONSTRAINTS, "")
    return [Setting(CONSTRAINTS, "constraint", f"unset {CONSTRAINTS}", (os.path.abspath(given),))] if given else []


def constraints_of(settings: Iterable[Setting]) -> list[Constraint]:
    """Every constraint in the files of ``settings`` that applies here. What cannot be read is left out, and so are URLs."""
    return [each for setting in settings for name in setting.files for each in _read(name, setting, set())]


def constraints_in_uv_files(environ: Mapping[str, str], folder: Path) -> list[Constraint]:
    """The ``constraint-dependencies`` of uv's own files: the machine's, the user's and the project's in or above ``folder``.

    Source: https://docs.astral.sh/uv/concepts/configuration-files/
    """
    if environ.get("UV_NO_CONFIG", "").lower() in {"1", "true", "yes", "on", "y", "t"}:
        return []
    setting = Setting("uv.toml", "constraint", "set UV_NO_CONFIG=1 to do without uv's configuration files")
    lines = [(path, line) for path in _files_of_uv(environ, folder) for line in _dependencies(path)]
    found = []
    for path, line in lines:
        requirement = _parsed(line)
        if requirement is not None:
            found.append(Constraint(requirement, without_secrets(line), f"constraint-dependencies in {path}", setting))
    return found


def unread_constraint(name: str, ranges: str, settings: Iterable[Setting]) -> Constraint:
    """A constraint on the distribution ``name`` that pip reports and no local file holds: URLs are not fetched again."""
    settings = [each for each in settings if each.key == "constraint"] or [
        Setting("pip's configuration", "constraint", _way_out_of_pip("constraint"))
    ]
    files = [file for each in settings for file in each.files]
    urls = [file for file in files if _path(file) is None]
    setting = next((each for each in settings if set(each.files) & set(urls)), settings[0])
    place = " or ".join(without_secrets(file) for file in urls or files) or setting.name
    return Constraint(Requirement(f"{name}{ranges}"), f"{name}{ranges}", place, setting)


def specified(path: str) -> list[Requirement]:
    """The constraints in one file, whoever wrote it."""
    return [each.requirement for each in constraints_of([Setting(path, "constraint", "", (path,))])]


def _way_out_of_pip(key: str) -> str:
    # pip takes an empty variable for none; one that names a file takes the place of what its configuration files name.
    return f"set PIP_{key.upper()}={os.devnull} to do without"


def _file_of(section: str, key: str, listing: str) -> str:
    loaded: list[tuple[str, str]] = _LOADED.findall(listing)
    for variant in _VARIANTS:
        for path in [path for each, path in reversed(loaded) if each == variant]:
            parser = configparser.RawConfigParser()
            try:
                parser.read(path, encoding="utf-8")
            except (OSError, ValueError, configparser.Error):
                continue
            names = {name.lstrip("-") for name in parser[section]} if parser.has_section(section) else set()
            if key in names:
                return path
    return "pip's configuration"


def _read(name: str, setting: Setting, seen: set[str]) -> Iterator[Constraint]:
    path = _path(name)
    if path is None or path in seen:
        return
    seen.add(path)
    try:
        content = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return
    for number, line in _lines(content):
        included = _INCLUDED.fullmatch(line)
        if included:
            inner = included[1].strip("'\"")
            yield from _read(inner if _SCHEME.match(inner) else str(Path(path).parent / inner), setting, seen)
            continue
        written = re.split(r"\s--?[a-z]", line)[0].strip()
        requirement = _parsed(_VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), written))
        if requirement is not None:
            yield Constraint(requirement, without_secrets(written), f"{path} line {number}", setting)


def _lines(content: str) -> Iterator[tuple[int, str]]:
    """Logical lines with the number of the first line of each: joined at a backslash, without comments."""
    start, held = 0, ""
    for number, line in enumerate(content.splitlines(), 1):
        start = start if held else number
        if line.endswith("\\"):
            held += line[:-1]
            continue
        whole = re.sub(r"(^|\s)#.*$", "", held + line).strip()
        held = ""
        if whole:
            yield start, whole


def _parsed(text: str) -> Requirement | None:
    try:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    except ValueError:  # no requirement, or a marker that compares what cannot be compared
        return None
    return requirement if applies else None


def _path(name: str) -> str | None:
    """The path that a file's name or ``file:`` URL means; None for another URL."""
    scheme = _SCHEME.match(name)
    if scheme is None:
        return os.path.abspath(name)
    if scheme[1].lower() == "file":
        return urllib.request.url2pathname(urllib.parse.urlsplit(name).path)
    return None


def _files_of_uv(environ: Mapping[str, str], folder: Path) -> Iterator[Path]:
    if given := environ.get("UV_CONFIG_FILE"):
        yield Path(given)
        return
    for parent in (folder, *folder.parents):
        if (parent / "uv.toml").is_file() or "uv" in _tables(parent / "pyproject.toml").get("tool", {}):
            yield from (parent / "uv.toml", parent / "pyproject.toml")
            break
    yield Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/"), ".config")) / "uv" / "uv.toml"
    for base in (*environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep), "/etc"):
        yield Path(base, "uv", "uv.toml")


def _dependencies(path: Path) -> list[str]:
    tables = _tables(path)
    own = tables.get("tool", {}).get("uv", {}) if path.name == "pyproject.toml" else tables
    found = own.get("constraint-dependencies", [])
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def _tables(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
