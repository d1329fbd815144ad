"""What is installed, at which version and with which constraints; the engine's profile says what comes with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_llminfer.engines.profiles import build_of
from pytest_llminfer.engines.profiles.base import NOTHING_ELSE, Recipe
from pytest_llminfer.errors import BadInputError

CONSTRAINTS = "LLMINFER_CONSTRAINTS"
"""The environment variable that names a constraints file for every environment that this package makes."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PINNED = re.compile(rf"({_NAME})==([A-Za-z0-9][A-Za-z0-9.!+_]*)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One distribution at one version, with its recipe and the constraints that the user gave.

    Attributes:
        name: In its normal form: lower case, dashes.
        version: As written, a local build (``+cpu``) included.
        recipe: What it needs beside itself.
        constraints: Absolute path of the user's constraints file; empty without one.
        instead_of_gpus: For a build that needs a GPU, what runs without one; empty for other builds and for local ones (``+cpu``).
    """

    name: str
    version: str
    recipe: Recipe = NOTHING_ELSE
    constraints: str = ""
    instead_of_gpus: str = ""

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """The requirement written as ``NAME==VERSION``; the name in its normal form (lower case, dashes).

        Raises:
            BadInputError: it is written in another way, or the constraints file cannot be read.
        """
        found = _PINNED.fullmatch(text.strip())
        if not found:
            raise BadInputError(f"{text!r} names no environment; write one distribution and one version, as in vllm==0.33.0")
        name = re.sub(r"[-_.]+", "-", found[1]).lower()
        build = build_of(name)
        return cls(name, found[2], build.recipe, constraints_file(), "" if "+" in found[2] else build.instead_of_gpus)

    @property
    def folder(self) -> str:
        """The name of its environment: another recipe, other constraints or another Python make another one."""
        facts = {"recipe": asdict(self.recipe), "constraints": _digest_of(self.constraints)}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{self.version}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"

    @property
    def full(self) -> list[str]:
        """What is installed: the distribution with its extras, and what comes along."""
        extras = f"[{','.join(self.recipe.extras)}]" if self.recipe.extras else ""
        return [f"{self.name}{extras}=={self.version}", *self.recipe.beside]

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def constraints_file() -> str:
    """The constraints file that the user's ``LLMINFER_CONSTRAINTS`` names, with its full path; empty without one.

    Raises:
        BadInputError: it is no file.
    """
    given = os.environ.get(CONSTRAINTS, "")
    if given and not Path(given).is_file():
        raise BadInputError(f"{CONSTRAINTS} names the file {given}, which is not there")
    return os.path.abspath(given) if given else ""


def _digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
