"""Engines of other distributions, which register a profile in the entry-point group ``pytest_llminfer.engines``."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util

from pytest_llminfer.engines.profiles.base import Profile
from pytest_llminfer.errors import BadInputError

GROUP = "pytest_llminfer.engines"


@functools.cache
def found() -> dict[str, importlib.metadata.EntryPoint]:
    """Engine → its entry point, of those that are installed beside this interpreter. The first on ``sys.path`` wins."""
    points: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        points.setdefault(point.name, point)
    return points


@functools.cache
def load(name: str) -> Profile:
    """The profile that an entry point names.

    Raises:
        BadInputError: in one line, that it cannot be imported, is no profile, or is that of another engine.
    """
    point = found()[name]
    where = f"the engine {name} of {_distribution(point)} (entry point {GROUP}: {name} = {point.value})"
    try:
        profile = point.load()
    except Exception as error:
        raise BadInputError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(profile, Profile):
        raise BadInputError(f"{where} is a {type(profile).__name__}, and must be a pytest_llminfer.engines.profiles.base.Profile")
    if profile.name != name:
        raise BadInputError(f"{where} is the profile of {profile.name!r}; both must have one name")
    return profile


def backend_file(profile: Profile) -> str:
    """The file of the top-level package or module that holds a backend of another distribution; nothing of it is imported.

    Raises:
        BadInputError: there is none, or it is a package without ``__init__.py``, which cannot be imported by its path.
    """
    package = profile.backend.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.has_location or spec.origin is None:
        raise BadInputError(
            f"the backend {profile.backend} of the engine {profile.name} cannot be found: no module {package} with a file is here"
        )
    return spec.origin


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"
