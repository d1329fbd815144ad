"""What a baseline holds of K graded runs: a digit a question, in the dataset's fixed order, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.recorded import Recorded, recorded_runs
from pytest_llminfer.stats import betting, sequential, sign_flips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.families.accuracy.grading import Answer

ORDER_SEED = 20260101
"""Of the fixed permutation of the questions, of which a record holds the first."""

MOST_RUNS = 15
"""One hexadecimal digit."""

_COLUMNS = {"flexible": "flexible", "strict": "strict", "format_miss": "format_misses", "truncated": "truncated"}


def pack(ids: Sequence[str], runs: Sequence[Mapping[str, Answer]]) -> dict[str, Any]:
    """The record of ``runs`` over the questions ``ids``: in how many runs each was so, and what that says of all.

    flexible, strict, format_miss, truncated: a hexadecimal digit a question. self_discordance: share of questions whose outcome
    differs between two runs, None with one run. smallest_detectable_drop, smallest_margin: shares that a later run of the
    same questions can show, at that discordance (docs/methods.md#sizes).

    Raises:
        BadInputError: more runs than a digit can count.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise BadInputError(f"a record holds 1 to {MOST_RUNS} runs, not {len(runs)}")
    found = recorded_runs([{name: run[name] for name in ids} for run in runs], ORDER_SEED)
    columns = {name: "".join(f"{getattr(found, field)[question]:x}" for question in ids) for name, field in _COLUMNS.items()}
    n, discordance = len(ids), found.self_discordance
    accuracy = {name: round(sum(getattr(found, name).values()) / len(runs) / n, 6) for name in ("flexible", "strict")}
    planned = {} if discordance is None else _planned(n, len(runs), discordance)
    return {
        "runs": len(runs),
        "questions": n,
        **columns,
        "accuracy": accuracy,
        "mean_tokens": found.mean_tokens,
        "self_discordance": discordance,
        **planned,
    }


def unpack(expected: Mapping[str, Any], ids: Sequence[str]) -> Recorded:
    """The recorded runs, where ``ids`` are the dataset's questions in their fixed order."""
    asked, runs = ids[: expected["questions"]], int(expected.get("runs", 1))
    counts = {
        field: dict(zip(asked, (int(digit, 16) for digit in expected[name]), strict=True)) for name, field in _COLUMNS.items()
    }
    return Recorded(
        runs=runs,
        **counts,
        mean_tokens=_number(expected.get("mean_tokens")),
        self_discordance=_number(expected.get("self_discordance")),
        order=sequential.shuffled(asked, ORDER_SEED),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _planned(n: int, runs: int, discordance: float) -> dict[str, float]:
    return {
        "smallest_detectable_drop": round(sign_flips.smallest_detectable_drop(n, runs, discordance), 6),
        "smallest_margin": math.ceil(1e6 * betting.smallest_margin(n, runs, discordance)) / 1e6,
    }
