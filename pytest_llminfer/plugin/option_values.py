"""What the text of an option means: every reader raises ValueError with one line where it means nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def engine(word: str) -> str:
    """An engine's name, with no secret in its address.

    Raises:
        ValueError: an address that holds credentials or a query.
    """
    from pytest_llminfer.spec import address_objection

    _, _, environment = word.partition("@")
    if environment.startswith(("http://", "https://")) and (objection := address_objection(environment)):
        raise ValueError(objection)
    return word


def replication(word: str) -> str:
    """How replicas are made.

    Raises:
        ValueError: another word than ``workers`` and ``native``.
    """
    from pytest_llminfer.spec import REPLICATIONS

    if word not in REPLICATIONS:
        raise ValueError(f"{word!r} is not one of {', '.join(REPLICATIONS)}")
    return word


def positive(word: str) -> int:
    """A whole number from 1 up.

    Raises:
        ValueError: anything else.
    """
    if not word.isdigit() or int(word) < 1:
        raise ValueError(f"{word!r} is not a whole number from 1 up")
    return int(word)


def runs(word: str) -> int:
    """How many runs a record of accuracy holds.

    Raises:
        ValueError: no whole number from 1 up, or more than a record holds.
    """
    from pytest_llminfer.families.accuracy.record import MOST_RUNS

    if (number := positive(word)) > MOST_RUNS:
        raise ValueError(f"{number} runs are more than the {MOST_RUNS} that a record holds")
    return number


def form(word: str) -> str:
    """How questions are worded.

    Raises:
        ValueError: no name in ``datasets.prompts.FORMS``.
    """
    from pytest_llminfer.datasets.prompts import FORMS

    if word not in FORMS:
        raise ValueError(f"{word!r} is not one of {', '.join(FORMS)}")
    return word


def questions(word: str) -> int:
    """A whole number from 1 up, or ``all``.

    Raises:
        ValueError: anything else.
    """
    return sys.maxsize if word == "all" else positive(word)


def model_name(word: str) -> str:
    """A name that a folder of baselines can have."""
    from pytest_llminfer.hardware import slug

    if not slug(word):
        raise ValueError(f"{word!r} has no letter or digit to name a baseline file after")
    return word


def folder(word: str, *, root: Path, must_exist: bool) -> Path:
    """A folder, relative to the root of the project."""
    import difflib

    path = root / word
    if not must_exist or path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{word!r} is a file, and no folder")
    beside = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    alike = difflib.get_close_matches(path.name, beside, n=1)
    hint = f" Did you mean {word.removesuffix(path.name) + alike[0]!r}?" if alike else ""
    raise ValueError(f"there is no folder {word!r}: record into it with --update-baselines=new, or name one that is there.{hint}")


def points(word: str) -> float:
    """Percentage points, as a share.

    Raises:
        ValueError: no number between 0 and 100.
    """
    try:
        value = float(word) / 100
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ValueError(f"{word!r} is not a number of percentage points between 0 and 100")
    return value


def seconds(word: str) -> float:
    """Seconds above 0.

    Raises:
        ValueError: anything else.
    """
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{word!r} is not a number of seconds above 0")
    return value


def limits(word: str) -> dict[str, tuple[float, float]]:
    """Limits of divergence by kind of cell: (KL in nats, share of the same top-1).

    Raises:
        ValueError: an unknown kind of cell, or not a KL above 0 with a share from 0 to 1.
    """
    given = json_object(word)
    if given:
        from pytest_llminfer.families.divergence.check import LIMITS
    for kind, pair in given.items():
        if kind not in LIMITS:
            raise ValueError(f"unknown kind of cell {kind!r}; valid: {', '.join(LIMITS)}")
        numbers = isinstance(pair, list) and [type(value) in (int, float) for value in pair] == [True, True]
        if not numbers or not (pair[0] > 0 and 0 <= pair[1] <= 1):
            raise ValueError(f"{kind!r} needs [KL in nats above 0, share from 0 to 1], not {pair!r}")
    return {kind: (float(kl), float(top1)) for kind, (kl, top1) in given.items()}


class _KeyTwiceError(ValueError):
    """A name that stands twice: either value could be meant."""


def json_object(word: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: no JSON, another value than an object, or one name twice.
    """
    import json

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise _KeyTwiceError(f"{twice[0]!r} stands twice: say it once")
        return dict(pairs)

    try:
        value = json.loads(word, object_pairs_hook=once)
    except _KeyTwiceError:
        raise
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f'{word!r} is not a JSON object such as {{"attn_implementation": "eager"}}')  # noqa: TRY004 - a usage error
    return value
