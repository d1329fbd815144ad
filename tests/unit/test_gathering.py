"""From the phases of tests to a result, and from that to the terminal and to JUnit: with literals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.record import BaselineKey
from pytest_llminfer.families.accuracy.section import EVIDENCE
from pytest_llminfer.families.memory.section import MEMORY
from pytest_llminfer.families.parallelism.section import PARALLELISM
from pytest_llminfer.report.gathering import AgainstRecords, Gathering, Phase
from pytest_llminfer.report.junit import properties
from pytest_llminfer.report.notes import CELL, DECIDED_BY_RECORD, LOADED, VERDICT
from pytest_llminfer.report.result import SessionResult, TestResult
from pytest_llminfer.report.terminal import entries, summary
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

KEY = {"hardware": "any", "model": "reference", "family": "answer", "entry": "e"}
LOAD = {"cell": "vllm", "phases": {"import": 1.0, "load": 2.0}, "afresh": False, "versions": {"vllm": "1"}, "device": "cuda"}
LOAD |= {"device_name": "H100", "device_count": 2, "dtype": "bf16", "kv_dtype": "fp8"}


def verdict(outcome: Outcome, *, key: str = "12 tok/s") -> Verdict:
    speed = Measurement("speed", 12.5, "tokens/s", 5, "MAD 0.1", baseline=13.0)
    return Verdict(outcome, "it is kept", key, (speed,), "at most 3 %", "a record", "2 %", "look")


def judged(outcome: Outcome, *, fatal: bool | None = None) -> tuple[str, str]:
    fatal = outcome in (Outcome.FAIL, Outcome.INVALID) if fatal is None else fatal
    return VERDICT, json.dumps({**verdict(outcome).to_dict(), "fatal": fatal})


def note(name: str, value: Any) -> tuple[str, str]:
    return name, json.dumps(value)


def gathered(
    *phases: str, notes: tuple[tuple[str, str], ...] = (), cell: str = "vllm", node_id: str = "a/test_speed.py::test_x"
) -> Gathering:
    gathering = Gathering()
    take(gathering, *phases, notes=notes, cell=cell, node_id=node_id)
    return gathering


def take(gathering: Gathering, *phases: str, notes: Any = (), cell: str = "vllm", node_id: str = "a/test_speed.py::test_x") -> None:
    """Phases as "call failed: why"; notes come with the call, and stay on the reports after it."""
    own = [(CELL, cell)] if cell else []
    for phase in phases:
        when, _, rest = phase.partition(" ")
        outcome, _, reason = rest.partition(": ")
        shown = own if when == "setup" and outcome == "passed" else [*own, *notes]
        gathering.take(Phase(node_id, "", when, outcome, 0.5, reason, shown))


def shown_by(*phases: str, notes: tuple[tuple[str, str], ...] = ()) -> TestResult:
    (test,) = gathered(*phases, notes=notes).tests()
    return test


BOTH = (judged(Outcome.PASS), judged(Outcome.INCONCLUSIVE))
LEFT_OVER = ("setup passed", "call passed", "teardown failed: left over")
RECORDED = note(RECORD, {"key": KEY, "expected": {}})
PASSED = ("setup passed", "call passed", "teardown passed")


@pytest.mark.parametrize(
    ("phases", "notes", "outcome", "failed", "shown"),
    [
        (PASSED, (), "pass", False, ["pass"]),
        (PASSED, (judged(Outcome.PASS),), "pass", False, ["pass 12 tok/s"]),
        (PASSED, BOTH, "inconclusive", False, ["pass 12 tok/s", "inconclusive 12 tok/s"]),
        (("setup passed", "call failed"), (judged(Outcome.FAIL),), "fail", True, ["FAIL 12 tok/s"]),
        (("setup passed", "call failed"), (judged(Outcome.INVALID),), "invalid", True, ["INVALID 12 tok/s"]),
        (("setup failed",), (judged(Outcome.INVALID),), "invalid", True, ["INVALID 12 tok/s"]),
        (("call failed",), (judged(Outcome.INCONCLUSIVE, fatal=True),), "inconclusive", True, ["inconclusive 12 tok/s"]),
        (("call failed: assert 1 == 2",), (judged(Outcome.PASS),), "fail", True, ["pass 12 tok/s", "FAIL"]),
        (("setup failed: no engine",), (), "error", True, ["ERROR"]),
        (LEFT_OVER, (judged(Outcome.PASS),), "error", True, ["pass 12 tok/s", "ERROR"]),
        (("setup skipped: no GPU",), (), "skip", False, ["skip"]),
        (("setup passed", "call skipped: recorded"), (RECORDED,), "skip", False, ["skip recorded"]),
        (("call skipped: enough",), (judged(Outcome.PASS),), "skip", False, ["pass 12 tok/s", "skip"]),
    ],
)  # fmt: skip
def test_what_a_test_says_is_what_pytest_and_its_verdicts_say(
    phases: tuple[str, ...], notes: tuple[tuple[str, str], ...], outcome: str, failed: bool, shown: list[str]
) -> None:
    test = shown_by(*phases, notes=notes)
    assert (test.outcome, test.failed) == (outcome, failed)
    assert [str(entry) for entry in entries(test)] == shown
    assert set(test.seconds) == {phase.partition(" ")[0] for phase in phases}


def test_a_verdict_arrives_whole_and_its_text_is_no_reason_of_its_own() -> None:
    test = shown_by("setup passed", "call failed: FAIL: it is kept", notes=(judged(Outcome.FAIL),))
    assert test.verdicts == (verdict(Outcome.FAIL),)
    assert test.reason == ""
    assert shown_by("call failed: assert 1 == 2", notes=(judged(Outcome.PASS),)).reason == "assert 1 == 2"
    assert shown_by("setup skipped: no GPU").reason == "no GPU"


def test_baselines_are_named_by_their_keys_and_arrays_are_left_out() -> None:
    notes = (note(USED, KEY), note(MISSING, {"key": KEY, "same_command": True}), note(SIDE_FILE, {"name": "x", "content": "AAAA"}))
    gathering = gathered("call passed", notes=(*notes, note(RECORD, {"key": KEY, "expected": {"big": 1}})))
    (test,) = gathering.tests()
    assert test.baselines_used == test.baselines_missing == test.baselines_recorded == ("any/reference/answer/e",)
    assert gathering.notes(RECORD) == [{"key": KEY}]
    assert gathering.notes(SIDE_FILE) == []


def test_each_note_is_handed_on_once() -> None:
    gathering, notes = Gathering(), [(CELL, "vllm")]
    seen = []
    for when in ("setup", "call", "teardown"):
        notes.append(note(USED, KEY))
        seen.append(gathering.take(Phase("test_a.py::test_x", "gw0", when, "passed", 0.1, "", list(notes))))
    assert seen == [[(USED, KEY)]] * 3


def test_one_test_in_two_processes_is_two_results() -> None:
    gathering = Gathering()
    for process in ("gw0", "gw1"):
        gathering.take(Phase("test_a.py::test_x", process, "call", "passed", 0.1, "", [(CELL, "vllm")]))
    assert len(gathering.tests()) == 2


def test_only_what_is_about_a_cell_or_was_judged_is_told() -> None:
    assert gathered(*PASSED, cell="").tests() == ()
    (test,) = gathered(*PASSED, cell="", notes=(judged(Outcome.PASS),)).tests()
    assert (test.cell, test.family) == ("", "speed")
    # Set up and not called, as in a session that is interrupted.
    assert gathered("setup passed").tests() == ()


def test_a_cell_has_what_its_engine_said_and_every_load() -> None:
    gathering = gathered("call passed", notes=(note(LOADED, LOAD), note(LOADED, {**LOAD, "afresh": True})))
    take(gathering, "call passed", cell="checkpoint:x@/x", node_id="test_checkpoint.py::test_x")
    take(gathering, "call skipped", cell="vllm-tp2", node_id="test_b.py::test_x")
    served, checkpoint, never = gathering.cells(
        {str(spec): spec.to_dict() for spec in (EngineSpec("vllm"), EngineSpec("vllm", tp=2))}
    )
    assert (served.id, served.versions, served.device_name, served.device_count) == ("vllm", {"vllm": "1"}, "H100", 2)
    assert (served.dtype, served.kv_dtype) == ("bf16", "fp8")
    assert [load.afresh for load in served.loads] == [False, True]
    assert served.spec is not None
    assert served.spec["engine"] == "vllm"
    assert (checkpoint.id, checkpoint.spec, checkpoint.loads) == ("checkpoint:x@/x", None, ())
    assert never.spec is not None
    assert (never.spec["tp"], never.versions, never.loads) == (2, {}, ())


PROFILE: dict[str, Any] = {
    "line": "weights",
    "unit": "bytes",
    "predicted": 100,
    "measured": 120,
    "difference": 20,
    "gate": "±10",
    "within": False,
}
PROVEN = {
    "cell": "vllm",
    "against": "record",
    "outcome": "pass",
    "asked": 38,
    "of": 300,
    "p_value": 0.2,
    "log_e": 0.7,
    "past_run": None,
}
SPLIT = {"cell": "vllm", "questions": 300, "seconds": 10.0, "tokens_per_second": 1000.0, "accuracy": 0.9}


def session(gathering: Gathering) -> SessionResult:
    words: dict[str, Any] = dict.fromkeys(("started", "ended", "pytest", "llminfer", "python", "command"), "")
    tests, cells, sections = gathering.tests(), gathering.cells({}), gathering.sections()
    return SessionResult(**words, exit_status=0, hardware={}, cells=cells, tests=tests, sections=sections)


def test_the_terminal_shows_every_table_of_the_result() -> None:
    notes = [note(MEMORY, {"cell": "vllm", "lines": [PROFILE, {**PROFILE, "line": "buffers"}]})]
    # Two tests stand on the same evidence: it counts once.
    notes += [note(EVIDENCE, PROVEN), note(EVIDENCE, PROVEN), note(LOADED, LOAD)]
    notes += [
        note(PARALLELISM, {**SPLIT, "parallelism": "single"}),
        note(PARALLELISM, {**SPLIT, "parallelism": "tp2", "seconds": 5.0}),
    ]
    assert summary(session(gathered("call passed", notes=(judged(Outcome.PASS), *notes))), 80) == [
        "cell  speed",
        "────  ─────────────",
        "vllm  pass 12 tok/s",
        "",
        "cell  parallelism  questions  seconds  of single  tokens/s  accuracy",
        "vllm  single       300        10.0     1.00       1,000     90.0%",
        "vllm  tp2          300        5.0      0.50       1,000     90.0%",
        "",
        "cell  against  asked      p-value  over tests  e-value  verdict",
        "vllm  record   38 of 300  0.2      0.2         2        pass",
        "",
        "cell  memory   predicted  measured  difference  gate",
        "vllm  weights  100        120       +20         ±10 OUTSIDE",
        "      buffers  100        120       +20         ±10 OUTSIDE",
        "engine loads: 1",
        "    vllm: 3.0 s (import 1.0 s, load 2.0 s)",
    ]


def test_an_inconclusive_verdict_is_told_where_its_test_did_not_fail() -> None:
    undecided = gathered("call passed", notes=(judged(Outcome.INCONCLUSIVE),))
    lines = summary(session(undecided), 80)
    assert (lines[0], lines[2], lines[3]) == ("cell  speed", "vllm  inconclusive 12 tok/s", "")
    assert lines[5:] == [f"    {line}" for line in str(undecided.tests()[0].verdicts[0]).splitlines()]
    assert "INCONCLUSIVE: it is kept" in lines[5]
    # A failure shows the message by itself, also where --llminfer-strict made it one.
    assert len(summary(session(gathered("call failed", notes=(judged(Outcome.INCONCLUSIVE),))), 80)) == 3


def test_cells_on_one_gpu_alone_are_no_table_of_parallelism() -> None:
    result = session(gathered("call passed", notes=(note(PARALLELISM, {**SPLIT, "parallelism": "single"}),)))
    assert result.sections == {}
    assert summary(result, 80) == ["cell  speed", "────  ─────", "vllm  pass"]


def test_junit_properties_are_for_people() -> None:
    test = shown_by("call failed", notes=(judged(Outcome.FAIL), note(USED, KEY)))
    assert properties(test) == [
        ("llminfer.cell", "vllm"),
        ("llminfer.verdict", "FAIL: it is kept"),
        ("llminfer.key", "12 tok/s"),
        ("llminfer.number", "speed: 12.5 tokens/s (n=5, MAD 0.1)"),
        ("llminfer.limit", "at most 3 % (from a record)"),
        ("llminfer.minimum_detectable_effect", "2 %"),
        ("llminfer.baseline", "any/reference/answer/e"),
    ]


def test_what_became_of_the_tests_that_a_record_decides_is_told_by_cell() -> None:
    asks = note(DECIDED_BY_RECORD, True)  # noqa: FBT003 - what is noted
    gathering = gathered("call passed", notes=(asks, note(USED, KEY)), cell="used")
    take(gathering, "call skipped: x", notes=(asks, note(MISSING, {"key": KEY, "same_command": True})), cell="missing", node_id="b")
    take(gathering, "setup skipped: x", notes=(asks,), cell="unasked", node_id="c")
    take(gathering, "setup skipped: x", cell="no record", node_id="d")
    take(gathering, "call passed", notes=(asks,), cell="unasked", node_id="e")
    assert gathering.against_records() == {
        "used": AgainstRecords(compared=True),
        "missing": AgainstRecords(missing=[BaselineKey(**KEY)]),
        "unasked": AgainstRecords(unasked=1),
    }
