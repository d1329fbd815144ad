"""Settings against a record: every field that moved, came or went is named."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llminfer.families.settings.check import check_settings
from pytest_llminfer.verdict import Outcome

SCHEDULER = {"max_num_seqs": 256, "policy": "fcfs"}
RECORDED = {"gpu_memory_utilization": 0.9, "scheduler": SCHEDULER, "sizes": [1, 2]}
OLD = {"engine": "0.25.1", "torch": "2.9", "numpy": "2.4", "pytest": "9"}
NEW = {"engine": "0.32.0", "torch": "2.11", "numpy": "2.4", "python": "3.12"}


def test_equal_settings_pass() -> None:
    found = {"sizes": (1, 2), "scheduler": {"policy": "fcfs", "max_num_seqs": 256}, "gpu_memory_utilization": 0.9}
    verdict = check_settings(found=found, expected=RECORDED, what="defaults", then=OLD, now=NEW)
    assert verdict.outcome is Outcome.PASS
    assert verdict.key == "4 fields"


def test_a_moved_default_is_shown_with_both_values() -> None:
    found = RECORDED | {"gpu_memory_utilization": 0.92, "scheduler": {"max_num_seqs": 1024}, "async": True}
    verdict = check_settings(found=found, expected=RECORDED, what="defaults", then=OLD, now=NEW)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.threshold_source == "the record (engine 0.25.1 → 0.32.0, torch 2.9 → 2.11)"
    assert verdict.details == (
        "gpu_memory_utilization: 0.9 → 0.92",
        "scheduler.max_num_seqs: 256 → 1024",
        "scheduler.policy: 'fcfs' → (absent)",
        "async: (absent) → True",
    )
    assert verdict.key == "4 changed"


@pytest.mark.parametrize("now", [{"transformers_version": "5.23.0"}, {"scheduler": {**SCHEDULER, "_commit_hash": "b"}}, {}])
def test_a_stamp_of_a_library_is_no_setting(now: dict[str, Any]) -> None:
    """transformers writes its version into a generation configuration: an upgrade that moves nothing else is green."""
    recorded = RECORDED | {"transformers_version": "5.22.2", "scheduler": {**SCHEDULER, "_commit_hash": "a"}}
    verdict = check_settings(found=RECORDED | now, expected=recorded, what="defaults", then=OLD, now=NEW)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "4 fields")
    assert "0.25.1 → 0.32.0" in verdict.threshold_source
    moved = check_settings(found=RECORDED | now | {"sizes": [1]}, expected=recorded, what="defaults", then=OLD, now=NEW)
    assert (moved.outcome, moved.details) == (Outcome.FAIL, ("sizes: [1, 2] → [1]",))


@pytest.mark.parametrize(
    ("found", "expected"),
    [({}, RECORDED), (RECORDED, {}), ({}, {}), ({"transformers_version": "5"}, {"transformers_version": "5"})],
)
def test_nothing_compared_is_no_pass(found: Any, expected: dict[str, object]) -> None:
    verdict = check_settings(found=found, expected=expected, what="defaults", then={}, now=NEW)
    assert verdict.outcome is Outcome.FAIL
    assert "nothing was compared" in verdict.details[0]
