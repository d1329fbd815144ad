"""Which constraints of the user stand in the way where pip or uv finds no versions that fit together."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pytest_llminfer.engines.environments import constraints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_llminfer.engines.environments.constraints import Constraint, Setting

    Ask = Callable[[Sequence[str]], str]

NO_SUCH_VERSION = "there is no such version for this Python and platform; `{pip} index versions {name}` lists those that there are"
_SHOWN = 3
_BLOCK = re.compile(r"^The conflict is caused by:\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)
_DEPENDS = re.compile(r"(?P<parent>[\w.-]+)\S* \S+ depends on (?P<requirement>.+)")
_REQUESTED = re.compile(r"The user requested (?P<constraint>\(constraint\) )?(?P<requirement>.+)")
_TAKE_A_VALUE = {"-c", "--extra-index-url", "--python"}


@dataclass(slots=True)
class _Conflict:
    """What pip reports of one conflict. Distributions are named in their normal form (lower case, dashes).

    Attributes:
        asked: Distribution to what each of its parents requires of it; the versions of one parent may require different ranges.
        constrained: Distribution to what all constraints together leave of it, as pip prints it.
        names: Every distribution that takes part.
    """

    asked: dict[str, dict[str, list[SpecifierSet]]] = field(default_factory=dict)
    constrained: dict[str, SpecifierSet] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def ask(self, requirement: Requirement, parent: str) -> None:
        name = canonicalize_name(requirement.name)
        self.asked.setdefault(name, {}).setdefault(parent, []).append(requirement.specifier)

    def groups(self, name: str) -> list[list[SpecifierSet]]:
        return list(self.asked.get(name, {}).values())


def explain_pip(output: str, arguments: Sequence[str], ask: Ask, environ: Mapping[str, str]) -> str:
    """Why ``pip install`` with ``arguments`` found no solution, where a constraint of the user takes part; else empty.

    output: what it printed. ask: runs pip with other arguments and gives what it prints, empty if that fails. A constraint is
    blamed only if a version that the others ask for is there and the constraint forbids it: pip lists those without effect too.
    Where one of them forbids all such versions, those that forbid only some are left out.
    """
    block = _BLOCK.search(output)
    if block is None:
        return ""
    ours = constraints.setting_of_ours(environ)
    settings = [*constraints.settings_of_pip(ask(["config", "list", "--verbose"])), *ours]
    known = constraints.constraints_of(settings)
    own = _own_constraints(arguments, ours)
    conflict = _conflict_of(block[1], [each.requirement for each in known if each.setting.key == "requirement"])
    for requirement in _requirements(arguments):
        conflict.ask(requirement, f"asked for: {requirement}")
    known += _unread(conflict, [each.requirement for each in known] + own, settings)
    for requirement in own:
        conflict.ask(requirement, f"held: {requirement}")
    indexes = [word for option, value in _options(arguments) if option == "--extra-index-url" for word in (option, value)]

    available = {
        name: _available(ask(["index", "versions", "--pre", *indexes, name]))
        for name in sorted(conflict.names)
        if name in conflict.constrained or any(canonicalize_name(each.requirement.name) == name for each in known)
    }
    forbidden = [(each, _share_forbidden(each, conflict, available)) for each in known]
    blamed = [(each, share) for each, share in forbidden if share > 0]
    blamed = [(each, share) for each, share in blamed if _takes_part(each, conflict)] or blamed
    if blamed:
        return _reason([each for each, share in blamed if share == 1] or [each for each, _ in blamed])
    for name in conflict.constrained:
        there = available[name]
        if there is not None and any(not _possible([group], there) for group in conflict.groups(name)):
            return NO_SUCH_VERSION.format(pip=f"{sys.executable} -m pip", name=name)
    return ""


def explain_uv(output: str, environ: Mapping[str, str]) -> str:
    """Why ``uv pip install`` found no solution, where its derivation has a range of a user's constraint in it; else empty.

    uv may narrow a range to versions that exist; one that is not recognised for that reason is not blamed.
    """
    if "No solution found" not in output:
        return ""
    known = constraints.constraints_of([*constraints.settings_of_uv(environ), *constraints.setting_of_ours(environ)])
    known += constraints.constraints_in_uv_files(environ, Path.cwd())
    text = " ".join(output.split())
    blamed = []
    for each in known:
        name = re.escape(canonicalize_name(each.requirement.name))
        found = re.findall(rf"(?<![\w.-]){name}((?:(?:===?|~=|!=|<=?|>=?)[\w.+!*]+,?)+)", text)
        said = {part for ranges in found for part in _ranges(ranges.rstrip(".,"))}
        if said & set(each.requirement.specifier) and not re.search(rf"(?<![\w.-]){name} was not found", text):
            blamed.append(each)
    return _reason(blamed) if blamed else ""


def _ranges(text: str) -> SpecifierSet:
    try:
        return SpecifierSet(text)
    except InvalidSpecifier:  # uv compares with local builds, which the standard does not
        return SpecifierSet()


def _reason(blamed: list[Constraint]) -> str:
    shown = "; ".join(dict.fromkeys(map(str, blamed[:_SHOWN])))
    if len(blamed) > _SHOWN:
        shown += f"; and {len(blamed) - _SHOWN} more"
    ways = ", ".join(dict.fromkeys(each.setting.way_out for each in blamed))
    return f"no versions fit together under {shown}. Loosen {'it' if len(blamed) == 1 else 'them'} there, or {ways}"


def _conflict_of(block: str, configured: list[Requirement]) -> _Conflict:
    conflict = _Conflict()
    for line in block.splitlines():
        depends, requested = _DEPENDS.fullmatch(line.strip()), _REQUESTED.fullmatch(line.strip())
        found = requested or depends
        if found is None:
            continue
        try:
            requirement = Requirement(found["requirement"])
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        conflict.names.add(name)
        if requested and requested["constraint"]:
            conflict.constrained[name] = requirement.specifier
        elif depends and not requested:
            conflict.names.add(canonicalize_name(depends["parent"]))
            conflict.ask(requirement, canonicalize_name(depends["parent"]))
        elif requirement not in configured:
            conflict.ask(requirement, f"asked for: {requirement}")
    return conflict


def _takes_part(each: Constraint, conflict: _Conflict) -> bool:
    name = canonicalize_name(each.requirement.name)
    return name in conflict.constrained or each.setting.key == "requirement"


def _share_forbidden(each: Constraint, conflict: _Conflict, available: Mapping[str, list[Version] | None]) -> float:
    """How much of what could be installed without the constraint it rules out, from 0 to 1; 1 where that cannot be known."""
    name = canonicalize_name(each.requirement.name)
    if name not in conflict.names:
        return 0
    there, groups = available[name], conflict.groups(name)
    if there is not None:
        wanted = _possible(groups, there)
    else:
        pins = [part.version for group in groups for ranges in group for part in ranges if part.operator == "=="]
        wanted = [Version(pin) for pin in pins if not pin.endswith("*")]
    if each.requirement.url or (there is None and not wanted):
        return 1
    forbidden = sum(not each.requirement.specifier.contains(version, prereleases=True) for version in wanted)
    return forbidden / len(wanted) if wanted else 0


def _possible(groups: list[list[SpecifierSet]], available: list[Version]) -> list[Version]:
    """The versions that suit every parent; pre-releases only where nothing else does, as pip has it."""
    suitable = [
        version for version in available if all(any(one.contains(version, prereleases=True) for one in group) for group in groups)
    ]
    return [version for version in suitable if not version.is_prerelease] or suitable


def _available(listing: str) -> list[Version] | None:
    """The versions in what ``pip index versions`` prints; none where it knows no such distribution, None if it does not say."""
    found = re.search(r"^Available versions: (.+)$", listing, re.MULTILINE)
    if found is None:
        return [] if "No matching distribution found" in listing else None
    versions = []
    for text in found[1].split(","):
        try:
            versions.append(Version(text.strip()))
        except InvalidVersion:
            continue
    return versions


def _unread(conflict: _Conflict, read: list[Requirement], settings: list[Setting]) -> list[Constraint]:
    """What pip says was constrained and nothing that was read says."""
    found = []
    for name, ranges in conflict.constrained.items():
        explained = {part for each in read if canonicalize_name(each.name) == name for part in each.specifier}
        if rest := ",".join(sorted(str(part) for part in ranges if part not in explained)):
            found.append(constraints.unread_constraint(name, rest, settings))
    return found


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    return [(word, value) for word, value in itertools.pairwise(arguments) if word in _TAKE_A_VALUE]


def _requirements(arguments: Iterable[str]) -> list[Requirement]:
    """The distributions that are to be installed."""
    words, found = iter(arguments), []
    for word in words:
        if word in _TAKE_A_VALUE:
            next(words, "")
        elif not word.startswith("-"):
            with contextlib.suppress(InvalidRequirement):  # a path
                found.append(Requirement(word))
    return found


def _own_constraints(arguments: Sequence[str], ours: list[Setting]) -> list[Requirement]:
    """The constraints that the installation sets itself, such as the torch that it holds."""
    of_the_user = {name for setting in ours for name in setting.files}
    files = [value for option, value in _options(arguments) if option == "-c" and os.path.abspath(value) not in of_the_user]
    return [each for path in files for each in constraints.specified(path)]
