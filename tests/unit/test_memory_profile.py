"""The profile of a cell and what a stop leaves behind, with literals and with real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory_table
import pytest

from pytest_llminfer.families.memory.profile import ProfileLine, check_profile, pinned_capacity, profile_lines
from pytest_llminfer.families.memory.section import rows, table
from pytest_llminfer.families.shutdown import observe as idling
from pytest_llminfer.families.shutdown.check import Leftover, Stop, check_idle
from pytest_llminfer.observations.kv_cache import KVPool
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.verdict import Outcome
from tests.support.present import present

MIB = 2**20
GIB = 2**30
WEIGHTS, PER_TOKEN = 16_060_522_496, 131_072
POOL = KVPool(2565, 16, 2565 * 16, "bfloat16", 2566 * 16 * PER_TOKEN, PER_TOKEN, 8192)
REPORT = MemoryReport("cuda", WEIGHTS, 2 * MIB, WEIGHTS, WEIGHTS, WEIGHTS, "torch allocator", 512, activation_peak_bytes=GIB)


def lines(report: MemoryReport = REPORT, pool: KVPool = POOL, capacity: int | None = 2565 * 16) -> tuple[ProfileLine, ...]:
    return profile_lines(report=report, weights=WEIGHTS, buffers=2 * MIB, pool=pool, bytes_per_token=PER_TOKEN, capacity=capacity)


def test_a_memory_profile_has_every_line_and_passes_where_all_are_as_predicted() -> None:
    found = lines()
    assert [line.line for line in found] == [
        "weights", "buffers", "KV bytes a token", "KV capacity", "KV pool", "activation peak", "load peak", "run peak",
    ]  # fmt: skip
    verdict = check_profile(lines=found)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "5/5 lines")
    assert len(verdict.measurements) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"report": replace(REPORT, weights_bytes=WEIGHTS + 1_050_673_152)},
            r"weights: 1,050,673,152 bytes more than .* \(\+6.54 %\)",
        ),
        ({"report": replace(REPORT, weights_bytes=WEIGHTS - 49 * MIB)}, "weights: 51,380,224 bytes less"),
        ({"report": replace(REPORT, buffers_bytes=66 * MIB)}, "buffers: 67,108,864 bytes more"),
        ({"pool": replace(POOL, bytes_per_token=PER_TOKEN * 2)}, r"KV bytes a token: 131,072 bytes more .* \(\+100.00 %\)"),
        ({"pool": replace(POOL, capacity_tokens=2564 * 16)}, "KV capacity: 16 tokens less than the predicted 41,040"),
        ({"pool": replace(POOL, stored_bytes=2568 * 16 * PER_TOKEN)}, "KV pool: 6,291,456 bytes more"),
    ],
)
def test_every_line_is_judged_on_both_sides(change: dict[str, Any], said: str) -> None:
    verdict = check_profile(lines=lines(**change))
    assert verdict.outcome is Outcome.FAIL
    assert re.search(said, "\n".join(verdict.details)), verdict.details


REQUESTED = 138_000_000_000
BLOCK = 16 * PER_TOKEN


def shared_out(**change: Any) -> dict[Any, Any]:
    report = {"engine_weights_bytes": WEIGHTS, "requested_bytes": REQUESTED, "accounted_bytes": REQUESTED - BLOCK + 1, **change}
    found = profile_lines(
        report=replace(REPORT, **report),
        weights=WEIGHTS,
        buffers=2 * MIB,
        pool=POOL,
        bytes_per_token=2 * PER_TOKEN,
        rank_bytes_per_token=PER_TOKEN,
        allocated=WEIGHTS + 2 * MIB,
    )
    return {line.line: line for line in found}


def test_what_an_engine_may_take_is_what_it_has_shared_out_but_for_a_part_of_a_block() -> None:
    line = shared_out()["share of the device"]
    assert (line.predicted, line.difference, line.tolerance, line.within) == (REQUESTED, 1 - BLOCK, BLOCK, True)
    assert not shared_out(accounted_bytes=REQUESTED - BLOCK - 1)["share of the device"].within
    # A pool that is a tenth small is seen here where its size was left to the engine.
    assert not shared_out(accounted_bytes=REQUESTED - POOL.stored_bytes // 10)["share of the device"].within
    assert "share of the device" not in shared_out(accounted_bytes=None)


def test_weights_as_the_allocator_counts_them_are_a_line_of_their_own() -> None:
    assert shared_out()["weights, as allocated"].within
    assert not shared_out(engine_weights_bytes=WEIGHTS + 60 * MIB)["weights, as allocated"].within
    assert "weights, as allocated" not in shared_out(engine_weights_bytes=None)


def test_a_pool_that_is_a_tenth_small_is_named() -> None:
    blocks = 2565 * 9 // 10
    small = KVPool(blocks, 16, blocks * 16, "bfloat16", (blocks + 1) * 16 * PER_TOKEN, PER_TOKEN, 8192)
    resolved = {"kv_cache_memory_bytes": 2566 * 16 * PER_TOKEN + 5}
    capacity = pinned_capacity(resolved=resolved, pool=small, rank_bytes_per_token=PER_TOKEN)
    assert capacity == 2565 * 16
    verdict = check_profile(lines=lines(pool=small, capacity=capacity))
    assert verdict.outcome is Outcome.FAIL
    assert "KV capacity: 4,112 tokens less than the predicted 41,040 (-10.02 %)" in verdict.details
    # Where the engine chose the size by itself nothing says what it should have been.
    assert check_profile(lines=lines(pool=small, capacity=None)).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("resolved", "tokens"),
    [
        ({"num_gpu_blocks_override": 100, "kv_cache_memory_bytes": None}, 99 * 16),
        ({"kv_cache_memory_bytes": 100 * 16 * PER_TOKEN}, 99 * 16),
        ({"max_total_tokens": 1000}, 992),
        ({"gpu_memory_utilization": 0.9}, None),
    ],
)
def test_a_pinned_pool_has_so_many_tokens(resolved: dict[str, Any], tokens: int | None) -> None:
    assert pinned_capacity(resolved=resolved, pool=POOL, rank_bytes_per_token=PER_TOKEN) == tokens


def test_nothing_predicted_is_a_failure() -> None:
    assert check_profile(lines=[ProfileLine("load peak", None, 5)]).outcome is Outcome.FAIL
    assert check_profile(lines=[]).outcome is Outcome.FAIL


def test_the_table_marks_what_is_outside() -> None:
    lines = [line.to_dict() for line in (ProfileLine("weights", 100, 120, 10), ProfileLine("KV capacity", 7, 7, 0, "tokens"))]
    lines.append(ProfileLine("load peak", None, 1234).to_dict())
    assert table(rows([{"cell": "vllm", "lines": lines}, {"cell": "vllm-tp2", "lines": lines[2:]}])) == [
        ("cell", "memory", "predicted", "measured", "difference", "gate"),
        ("vllm", "weights", "100", "120", "+20", "±10 OUTSIDE"),
        ("", "KV capacity", "7 tokens", "7 tokens", "+0 tokens", "exact"),
        ("", "load peak", "-", "1,234", "-", "shown"),
        ("vllm-tp2", "load peak", "-", "1,234", "-", "shown"),
    ]


def test_a_device_is_read_until_two_readings_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idling, "_SETTLE_SECONDS", 0.0)
    readings = iter([9 * GIB, 3 * GIB, GIB, GIB, 0])
    monkeypatch.setattr(idling, "device_bytes", lambda _: next(readings))
    assert idling._settled(["GPU-0"], time.monotonic() + 60) == GIB
    monkeypatch.setattr(idling, "device_bytes", lambda _: None)
    assert idling._settled(["GPU-0"], time.monotonic() + 60) is None
    falling = iter(range(5, 0, -1))
    monkeypatch.setattr(idling, "device_bytes", lambda _: next(falling))
    assert idling._settled(["GPU-0"], time.monotonic()) == 5


def test_recorded_memory_profiles_are_one_markdown_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        ProfileLine("weights", 1000, 1200, 10),
        ProfileLine("KV capacity", 7, 7, 0, "tokens"),
        ProfileLine("run peak", None, 5),
    ]
    entry = {"expected": {"lines": [line.to_dict() for line in found]}}
    file = tmp_path / "nvidia-h200-x1" / "llama-3-8b-dummy" / "memory_profile.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"entries": {"vllm-none-auto-kv_auto": entry}}))
    monkeypatch.setattr(sys, "argv", ["memory_table.py", str(tmp_path), "nvidia"])
    memory_table.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| nvidia-h200-x1 | llama-3-8b-dummy | vllm-none-auto-kv_auto | weights | 1,000 | 1,200 | +200 | **±10: outside** |",
        "|  |  |  | KV capacity | 7 tokens | 7 tokens | +0 tokens | exact |",
        "|  |  |  | run peak |  | 5 |  | shown |",
    ]
    monkeypatch.setattr(sys, "argv", ["memory_table.py", str(tmp_path), "amd"])
    with pytest.raises(SystemExit, match=r"no memory_profile\.json"):
        memory_table.main()


CLEAN = Stop(held_bytes=500 * MIB, seconds=0.2)


def test_three_clean_stops_pass_and_fewer_decide_nothing() -> None:
    assert check_idle(stops=[CLEAN] * 3).outcome is Outcome.PASS
    assert check_idle(stops=[CLEAN] * 2).outcome is Outcome.INCONCLUSIVE
    assert check_idle(stops=[]).outcome is Outcome.FAIL
    assert check_idle(stops=[replace(CLEAN, held_bytes=0)] * 3).outcome is Outcome.FAIL


def test_a_process_that_is_left_is_named_with_what_it_holds() -> None:
    verdict = check_idle(stops=[CLEAN, replace(CLEAN, left=(Leftover(42, "python -c x", 100 * MIB),))])
    assert (verdict.outcome, verdict.key) == (Outcome.FAIL, "100.0 MiB left")
    assert verdict.details == ("stop 2: process 42 (python -c x) lives on and holds 104,857,600 bytes",)


@pytest.mark.parametrize(("after", "outcome"), [(64, Outcome.PASS), (65, Outcome.FAIL), (-64, Outcome.PASS), (-65, Outcome.FAIL)])
def test_a_device_is_idle_again_within_64_mib(after: int, outcome: Outcome) -> None:
    stops = [replace(CLEAN, device_bytes=GIB), replace(CLEAN, device_bytes=GIB), replace(CLEAN, device_bytes=GIB + after * MIB)]
    assert check_idle(stops=stops).outcome is outcome
    if after < -64:
        outcome = Outcome.INCONCLUSIVE  # others were on the device before
    assert check_idle(stops=stops[2:] * 3, idle_bytes=GIB).outcome is outcome


def test_what_every_stop_leaves_alike_is_found_beside_the_device_before() -> None:
    verdict = check_idle(stops=[replace(CLEAN, device_bytes=21 * GIB)] * 3, idle_bytes=GIB)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0] == "stop 1: 22,548,578,304 bytes in use on the device, +21,474,836,480 to idle"
    crowded = [replace(CLEAN, device_bytes=GIB)] * 2 + [replace(CLEAN, device_bytes=3 * GIB)]
    assert check_idle(stops=crowded, idle_bytes=2 * GIB).outcome is Outcome.FAIL


HOLDS = "import time; kept = bytearray(b'x') * (30 << 20); print('there', flush=True); time.sleep(60)"
SPAWNS = (
    f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {HOLDS!r}], start_new_session=True); time.sleep(60)"
)


def test_descendants_in_a_session_of_their_own_are_found_and_weighed() -> None:
    with subprocess.Popen([sys.executable, "-c", SPAWNS], start_new_session=True, stdout=subprocess.PIPE) as parent:
        left: list[tuple[int, int]] = []
        try:
            present(parent.stdout).readline()
            processes = idling.process_tree([parent.pid])
            assert parent.pid in dict(processes)
            assert len(processes) == 2
            os.killpg(parent.pid, 9)
            parent.wait()
            # The pipe to the parent is gone, and its child lives on.
            (left,) = [idling.still_alive(processes)]
            assert [pid for pid, _ in left] == [pid for pid in dict(processes) if pid != parent.pid]
            assert 30 * MIB < idling.unique_bytes(left[0][0]) < 60 * MIB
        finally:
            for pid, _ in left:
                os.kill(pid, 9)
    deadline = time.monotonic() + 10
    while idling.still_alive(processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert idling.still_alive(processes) == []
    assert idling.unique_bytes(left[0][0]) == 0


def test_a_process_that_was_given_the_same_id_is_another() -> None:
    (mine,) = [entry for entry in idling.process_tree([os.getpgid(0)]) if entry[0] == os.getpid()]
    assert idling.still_alive([mine]) == [mine]
    assert idling.still_alive([(mine[0], mine[1] - 1)]) == []
