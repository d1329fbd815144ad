"""``--llminfer-report``: what a session found, as one file of plain data, and as properties of a JUnit file."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pytest_llminfer.report.files import JSON_SCHEMA
from pytest_llminfer.report.result import SessionResult
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

TESTS = """
    import pathlib
    import pytest
    from pytest_llminfer.verdict import Measurement, Outcome, Verdict

    @pytest.fixture(scope="session")
    def engine_args():
        return {}

    def verdict(outcome):
        speed = Measurement("speed", 12.5, "tokens/s", 5, "MAD 0.1", baseline=13.0, limit=12.6)
        return Verdict(outcome, "speed has not dropped", "12 tok/s", (speed,), "at most 3 %", "the record of today",
                       "a drop of 2 %", "look at the clock", ("went from 13 to 12.5",))

    @pytest.mark.parametrize("outcome", list(Outcome), ids=str)
    def test_judged(engine, judge, outcome):
        assert not pathlib.Path("out/results.json").exists()
        judge(verdict(outcome))

    def test_missing(engine, baseline):
        baseline.expected("answer", observe=lambda engine, previous: {"value": 1}, conditions={}, n=1)

    def test_skipped(engine):
        pytest.skip("there is no second GPU")

    def test_broken(engine):
        assert engine.loads == 7
"""
VERDICT = Verdict(
    Outcome.FAIL,
    "speed has not dropped",
    "12 tok/s",
    (Measurement("speed", 12.5, "tokens/s", 5, "MAD 0.1", baseline=13.0, limit=12.6),),
    "at most 3 %",
    "the record of today",
    "a drop of 2 %",
    "look at the clock",
    ("went from 13 to 12.5",),
)


def written(path: Path) -> dict[str, Any]:
    """The file, valid by the published schema."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator(json.loads(JSON_SCHEMA.read_text(encoding="utf-8"))).validate(data)
    return data


def test_a_session_is_written_whole_and_as_the_schema_says(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_speed=TESTS)
    given = '{"hf_token": "hf_abc", "seed": 3}'
    result = run("--dtype=auto,fp32", "--llminfer-report=out", f"--engine-args={given}", "--junitxml=out/junit.xml", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    data = written(pytester.path / "out" / "results.json")
    found = SessionResult.from_dict(data)
    assert found.to_dict() == data
    assert found.exit_status == 1
    assert found.started <= found.ended
    assert "hf_abc" not in json.dumps(data)
    assert str(pytester.path) not in found.command
    options = {option.name: (option.value, option.source) for option in found.options}
    assert options["dtype"] == ("auto,fp32", "command line")
    assert options["model"] == ("reference", "default")
    assert options["strict"] == (False, "default")

    assert [cell.id for cell in found.cells] == ["simulated", "simulated-fp32"]
    for cell in found.cells:
        assert cell.spec is not None
        assert cell.spec["engine"] == "simulated"
        assert cell.versions
        assert (cell.device, cell.device_count, cell.dtype) == ("cpu", 1, "fp32")
        assert cell.device_name == found.hardware["cpu"]
        (load,) = cell.loads
        assert set(load.phases) == {"import", "load"}

    tests = {test.node_id.partition("::")[2]: test for test in found.tests}
    assert len(tests) == len(found.tests) == 14
    outcomes = {name: (test.outcome, test.failed) for name, test in tests.items() if test.cell == "simulated"}
    assert outcomes == {
        "test_judged[simulated-pass]": ("pass", False),
        "test_judged[simulated-inconclusive]": ("inconclusive", False),
        "test_judged[simulated-fail]": ("fail", True),
        "test_judged[simulated-invalid]": ("invalid", True),
        "test_missing[simulated]": ("skip", False),
        "test_skipped[simulated]": ("skip", False),
        "test_broken[simulated]": ("fail", True),
    }
    assert tests["test_judged[simulated-fail]"].verdicts == (VERDICT,)
    assert tests["test_skipped[simulated]"].reason == "there is no second GPU"
    assert "assert 1 == 7" in tests["test_broken[simulated]"].reason
    assert tests["test_missing[simulated]"].baselines_missing == ("any/reference/answer/simulated-none-auto-kv_auto",)
    assert all(set(test.seconds) == {"setup", "call", "teardown"} for test in found.tests)
    assert {test.family for test in found.tests} == {"speed"}
    assert found.messages == ("baselines: 2 missing; record them with the same command and --update-baselines=new",)

    document = ET.parse(pytester.path / "out" / "junit.xml")  # noqa: S314 - written by pytest
    cases = {case.get("name"): case for case in document.iter("testcase")}
    properties = [(each.get("name"), each.get("value")) for each in cases["test_judged[simulated-fail]"].iter("property")]
    assert properties[:4] == [
        ("llminfer.cell", "simulated"),
        ("llminfer.verdict", "FAIL: speed has not dropped"),
        ("llminfer.key", "12 tok/s"),
        ("llminfer.number", "speed: 12.5 tokens/s (n=5, MAD 0.1)"),
    ]
    shown = [(each.get("name") or "", each.get("value") or "") for case in cases.values() for each in case.iter("property")]
    assert all(name.startswith("llminfer.") and not value.startswith("{") for name, value in shown)


def test_a_recorded_baseline_is_named_and_the_profile_of_memory_is_a_section(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        test_memory="""
        def test_first(engine, baseline):
            baseline.expected("answer", observe=lambda engine, previous: {"value": 1}, conditions={}, n=1)

        def test_profile(memory_profile):
            assert memory_profile.take()
        """
    )
    run("--llminfer-report=out", "--update-baselines=new", *mode)
    found = SessionResult.from_dict(written(pytester.path / "out" / "results.json"))
    first = next(test for test in found.tests if "test_first" in test.node_id)
    assert first.baselines_recorded == ("any/reference/answer/simulated-none-auto-kv_auto",)
    assert first.outcome == "skip"
    weights = next(row for row in found.sections["memory"] if row["line"] == "weights")
    assert weights["cell"] == "simulated"
    assert weights["difference"] == weights["measured"] - weights["predicted"]

    run("--llminfer-report=out", *mode)
    found = SessionResult.from_dict(written(pytester.path / "out" / "results.json"))
    first = next(test for test in found.tests if "test_first" in test.node_id)
    assert first.baselines_used == ("any/reference/answer/simulated-none-auto-kv_auto",)


def test_a_session_that_is_interrupted_is_written(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        """
        import os, signal, time

        def test_first(engine): pass

        def test_second(engine, request):
            # What the first test said is with the process that gathers it by then.
            time.sleep(3)
            os.kill(os.getppid() if hasattr(request.config, "workerinput") else os.getpid(), signal.SIGINT)
            time.sleep(30)
        """
    )
    # A background job of a shell ignores the signal, and so do its children.
    pytester.makeconftest("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n")
    result = run("--llminfer-report=out", *mode)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    found = SessionResult.from_dict(written(pytester.path / "out" / "results.json"))
    assert found.exit_status == 2
    assert [(test.node_id.partition("::")[2], test.outcome) for test in found.tests] == [("test_first[simulated]", "pass")]


def test_a_session_without_a_test_of_ours_is_written_too(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("def test_alone(): pass")
    result = run("--llminfer-report=out")
    assert result.ret == pytest.ExitCode.OK
    found = SessionResult.from_dict(written(pytester.path / "out" / "results.json"))
    assert (found.tests, found.cells, found.exit_status) == ((), (), 0)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere; run the tests as another user")
def test_a_folder_without_the_right_to_write_is_one_error(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    locked = pytester.mkdir("locked")
    locked.chmod(0o500)
    refused(pytester, run, "locked", "Permission denied", ())


def test_a_file_in_the_way_is_one_error(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    (pytester.path / "in_the_way").write_text("kept")
    refused(pytester, run, "in_the_way/out", "Not a directory", mode)
    assert (pytester.path / "in_the_way").read_text() == "kept"


def refused(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], folder: str, why: str, mode: tuple[str, ...]) -> None:
    pytester.makepyfile("def test_first(engine): pass")
    result = run(f"--llminfer-report={folder}", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if line.startswith("ERROR")]
    assert f"{folder}/results.json cannot be written: {why}; it is kept in " in line
    assert "Traceback" not in result.stdout.str()
    kept = Path(line.rpartition("it is kept in ")[2])
    assert SessionResult.from_dict(written(kept)).tests[0].outcome == "pass"
    kept.unlink()
    kept.parent.rmdir()


def test_the_ini_file_names_a_folder_relative_to_the_root(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nllminfer_report = reports\n")
    pytester.mkdir("inner").joinpath("test_a.py").write_text("def test_first(engine): pass")
    run("inner")
    data = written(pytester.path / "reports" / "results.json")
    assert {"name": "report", "value": "reports", "source": "ini"} in data["options"]


def test_without_the_option_nothing_is_written(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("def test_first(engine): pass")
    run()
    assert list(pytester.path.rglob("results.json")) == []
