"""Which drop a record can rule out: the margin of its tests, and records that show nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.recorded import points
from pytest_llminfer.stats import betting, sign_flips
from pytest_llminfer.stats.flips import PLANNED_DISCORDANCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.families.accuracy.grading import Gate
    from pytest_llminfer.families.accuracy.recorded import Recorded

WIDEST_MARGIN = 0.05
"""The margin of a test is widened to what its record supports, but no further."""

_MOST_UNUSABLE = 0.5
"""Share of cut off or malformed answers beyond which the few others say nothing of the model."""


def supported_margin(recorded: Recorded, wanted: float, *, questions: int | None = None) -> float:
    """``wanted``, or the smallest margin that ``questions`` of the record (None: all) support, in tenths of a point, up to 5
    points.

    Supported is what a run without a drop passes in 97 of 100 cases.
    """
    smallest = _smallest(recorded, recorded.gate, questions)
    return max(wanted, min(WIDEST_MARGIN, math.ceil(1000 * smallest - 1e-9) / 1000))


def plan_margin(recorded: Recorded, margin: float, *, gate: Gate = "flexible", questions: int | None = None) -> float:
    """The margin, if ``questions`` of the record (None: all) can support it: a run without a drop passes in 97 of 100 cases.

    With one recorded run, whose noise is unknown, a discordance of 3 % is planned for (docs/methods.md#discordance).

    Raises:
        BadInputError: they cannot; the message names the smallest margin that they can. Or the record is one that shows nothing:
            fewer right answers than a drop takes away, or most answers cut off or malformed.
    """
    n, measured, discordance = len(recorded.order[:questions]), recorded.discordance(gate), _discordance(recorded, gate)
    _refuse_what_shows_nothing(recorded, gate, max(margin, sign_flips.smallest_detectable_drop(n, recorded.runs, discordance)))
    smallest = _smallest(recorded, gate, questions)
    if margin >= smallest:
        return margin
    known = f"{discordance:.1%} discordance" + " (planned for: one run cannot tell)" * (measured is None)
    if discordance < betting.LEAST_DISCORDANCE:
        known += f" (at least {betting.LEAST_DISCORDANCE:.0%} is planned for)"
    raise BadInputError(
        f"a margin of {points(margin)} cannot be told from noise with {n:,} questions, {recorded.runs} recorded "
        f"run{'s' * (recorded.runs > 1)} and {known}; the smallest that can: {points(smallest, up=True)}. "
        "Accept that margin, or record more questions or runs."
    )


def _smallest(recorded: Recorded, gate: Gate, questions: int | None) -> float:
    return betting.smallest_margin(len(recorded.order[:questions]), recorded.runs, _discordance(recorded, gate))


def _discordance(recorded: Recorded, gate: Gate) -> float:
    measured = recorded.discordance(gate)
    return PLANNED_DISCORDANCE if measured is None else measured


def _refuse_what_shows_nothing(recorded: Recorded, gate: Gate, lost: float) -> None:
    """Raise where less than ``lost``, a share, could be lost, or where more than half of the answers are cut off or malformed."""
    way_out = "look at the answers, the dataset and --gsm8k-form; nothing is recorded"
    for noun, counts in (("cut off at the token limit", recorded.truncated), ("without '#### <number>'", recorded.format_misses)):
        if (share := _share(counts, recorded.runs)) > _MOST_UNUSABLE:
            raise BadInputError(f"{share:.1%} of the answers are {noun}: {way_out}")
    if (share := _share(recorded.right(gate), recorded.runs)) < lost:
        known = f"{share:.1%} of {len(recorded.order):,} questions are answered right"
        raise BadInputError(f"{known}: no drop of {points(lost)}, the smallest to be told, can come of that; {way_out}")


def _share(counts: Mapping[str, int], runs: int) -> float:
    return sum(counts.values()) / max(1, len(counts) * runs)
