"""The check of how far one changed token reaches."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llminfer.families.kv_equivalence.receptive_field import check_reach
from pytest_llminfer.verdict import Outcome


@pytest.mark.parametrize(
    ("first", "last", "outcome"), [(5, 43, Outcome.PASS), (5, 44, Outcome.FAIL), (5, 42, Outcome.FAIL), (4, 43, Outcome.FAIL)]
)
def test_a_token_reaches_exactly_as_far_as_its_windows(first: int, last: int, outcome: Outcome) -> None:
    changed = np.zeros(60)
    changed[first : last + 1] = 1e-3
    sound = np.zeros(60)
    sound[5:44] = 1e-3
    found = check_reach(changes={"prefill": sound, "decode": changed}, position=5, reach=38, claim="c")
    assert found.outcome is outcome


def test_changes_nowhere_are_no_proof() -> None:
    assert check_reach(changes={"decode": np.zeros(60)}, position=5, reach=38, claim="c").outcome is Outcome.FAIL
