"""Layers with a window: which tokens a token can reach, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_reach(*, changes: Mapping[str, np.ndarray], position: int, reach: int, claim: str) -> Verdict:
    """Whether another token at ``position`` changes predictions at the next ``reach`` positions at most, and at the last of them.

    changes: by way of computing, per position (T,) the largest change of a logit. Before the token and beyond its reach every bit
    must be equal: what is masked or dropped enters no sum (METHODS 3.3).
    """
    lines: list[str] = []
    last: list[int] = []
    for way, found in changes.items():
        where = np.flatnonzero(found)
        last += [int(where[-1])] if len(where) else []
        if not len(where) or len(found) <= position + reach + 1:
            lines.append(f"{way}: nothing was compared: {len(where)} of {len(found)} positions changed")
        elif where[0] < position:
            lines.append(f"{way}: token {where[0]} changed, {position - where[0]} before the one that was replaced")
        elif where[-1] > position + reach:
            lines.append(f"{way}: token {where[-1]} changed, {where[-1] - position} after it: windows are too long, or not applied")
        elif where[-1] < position + reach:
            lines.append(f"{way}: tokens changed up to {where[-1] - position} after it, not {reach}: windows are too short")
    if not changes:
        lines.append("nothing was compared")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=f"reach {max(last, default=position) - position}",
        measurements=tuple(
            Measurement(f"positions changed by {way}", int(np.count_nonzero(found)), "positions", len(found))
            for way, found in changes.items()
        ),
        threshold=f"changes up to exactly {reach} tokens after the one that was replaced",
        threshold_source="windows and layers of the configuration",
        smallest_detectable="one token more or less, in any layer",
        advice="window bug: look at how many tokens a layer with a window keeps and sees: the last W, its own included",
        details=tuple(lines),
    )
