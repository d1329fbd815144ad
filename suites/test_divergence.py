"""Divergence: at 4,096 fixed positions the engine predicts what was recorded. It costs seconds, and comes before accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.divergence.check import check_divergence, check_divergence_ratio, check_unchanged

if TYPE_CHECKING:
    from pytest_llminfer.families.divergence.observe import Divergence
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_needs("score_top")


def test_predictions_are_as_recorded(divergence: Divergence, judge: Judge) -> None:
    """Against the cell's own record: another kernel shows here, at equal quality too."""
    record = divergence.recorded()
    judge(
        check_unchanged(
            candidate=divergence.scores,
            recorded=record.scores,
            noise=record.noise,
            dtype=divergence.dtype,
            same_setting=divergence.same_setting(record),
        )
    )


def test_divergence_from_unquantized_weights(divergence: Divergence, judge: Judge) -> None:
    """Against unquantized weights: within the limits of this kind of cell, and no farther than it was."""
    reference = divergence.reference()
    if divergence.limit is not None:
        judge(
            check_divergence(
                candidate=divergence.scores,
                reference=reference.scores,
                limit=divergence.limit,
                kind=divergence.kind,
                dtype=divergence.dtype,
                of=divergence.reference_name,
            )
        )
    if divergence.quantized:
        record = divergence.recorded()
        judge(
            check_divergence_ratio(
                candidate=divergence.scores,
                recorded=record.scores,
                reference=reference.scores,
                noise=divergence.noise_of(record),
                dtype=divergence.dtype,
                of=divergence.reference_name,
            )
        )
