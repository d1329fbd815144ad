"""Records of schema 1 brought up to date: under the names of what was asked for, with nothing lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_llminfer.baselines import document, run_history, side_files
from pytest_llminfer.baselines.migrate import OLD_NAME, plan
from pytest_llminfer.baselines.record import BaselineKey
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.cli import main
from tests.support.paths import BASELINES

if TYPE_CHECKING:
    from pathlib import Path


def old(name: str, command: str = "pytest suites/", date: str = "2026-01-01T00:00:00Z", **conditions: Any) -> dict[str, Any]:
    provenance = {"command": command, "date": date, "commit": "c", "n": 1, "hardware": "h", "versions": {"engine": "1"}}
    return {"expected": {"of": name}, "conditions": {"model_sha256": "s", **conditions}, "provenance": provenance}


def folder(tmp_path: Path, family: str, entries: dict[str, Any], model: str = "any/m") -> Path:
    path = tmp_path / model / f"{family}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "family": family, "entries": entries, "note": "kept"}))
    return path


def migrate(root: Path) -> None:
    steps, problems = plan(root)
    assert problems == []
    for step in steps:
        step.take()


@pytest.mark.parametrize(
    ("name", "command", "new"),
    [
        ("transformers-none-bf16-kv_bf16", "pytest suites/", "transformers-none-auto-kv_auto"),
        ("transformers-none-fp16-kv_fp16", "pytest --dtype=fp32,fp16 suites", "transformers-none-fp16-kv_auto"),
        ("transformers-none-bf16-kv_bf16", "pytest --dtype auto,bf16", "transformers-none-auto-kv_auto"),
        ("vllm-fp8-bf16-kv_fp8-tp2", "pytest '--llminfer-kv-dtype=fp8' --tp 2", "vllm-fp8-auto-kv_fp8-tp2"),
        ("llamacpp-q8_0-fp16-kv_fp16-serve", "pytest --llminfer-dtype fp16 --serve", "llamacpp-q8_0-fp16-kv_auto-serve"),
        ("llamacpp-none-bf16-kv_fp16", "pytest 'an unended quote", "llamacpp-none-auto-kv_auto"),
    ],
)
def test_an_entry_gets_the_name_of_what_its_command_asked_for(tmp_path: Path, name: str, command: str, new: str) -> None:
    before = old(name, command, prompt="p")
    path = folder(tmp_path, "tokens", {name: before})
    migrate(tmp_path)
    found = json.loads(path.read_text())
    assert (found["schema"], found["family"], found["note"]) == (document.SCHEMA, "tokens", "kept")
    ((found_name, after),) = found["entries"].items()
    assert found_name == new
    assert after["expected"] == before["expected"]
    dtype, kv_dtype = name.split("-")[2], name.split("-")[3].removeprefix("kv_")
    assert after["conditions"] == {"model_sha256": "s", "prompt": "p", "dtype": dtype, "kv_dtype": kv_dtype}
    assert after["provenance"] == {**before["provenance"], OLD_NAME: name}


def test_each_dtype_of_one_command_gets_its_own_name(tmp_path: Path) -> None:
    names = [f"transformers-none-{dtype}-kv_{dtype}" for dtype in ("bf16", "fp16", "fp32")]
    path = folder(tmp_path, "divergence", {name: old(name, "pytest --dtype=auto,fp32,fp16 suites") for name in names})
    migrate(tmp_path)
    entries = json.loads(path.read_text())["entries"]
    assert {entry["expected"]["of"]: name for name, entry in entries.items()} == {
        old_name: f"transformers-none-{asked}-kv_auto" for old_name, asked in zip(names, ("auto", "fp16", "fp32"), strict=True)
    }


def test_of_two_records_asked_for_in_the_same_words_both_are_kept_and_the_later_has_the_name(tmp_path: Path) -> None:
    then, now = "transformers-none-bf16-kv_bf16", "transformers-none-fp16-kv_fp16"
    path = folder(tmp_path, "tokens", {then: old(then), now: old(now, date="2026-02-01T00:00:00Z")})
    migrate(tmp_path)
    entries = json.loads(path.read_text())["entries"]
    assert {name: entry["expected"]["of"] for name, entry in entries.items()} == {"transformers-none-auto-kv_auto": now, then: then}


def test_two_entries_that_would_have_one_name_stay_as_they_are(tmp_path: Path) -> None:
    command = "pytest --dtype=bf16 --kv-dtype=bf16"
    then, now = "transformers-none-bf16-kv_bf16", "transformers-none-fp16-kv_fp16"
    path = folder(tmp_path, "tokens", {then: old(then, command), now: old(now, command, date="2026-02-01T00:00:00Z")})
    before = path.read_bytes()
    assert plan(tmp_path) == ([], [f"baseline file {path} holds two entries that would have one name: remove one of them"])
    assert path.read_bytes() == before


def test_speeds_say_that_they_were_measured_without_engine_arguments(tmp_path: Path) -> None:
    name, args = "vllm-none-bf16-kv_bf16", {"block_size": 32}
    cases: dict[str, dict[str, Any]] = {"throughput_decode": {}, "serving_latency": {"engine_args": args}, "tokens": {}}
    for family, conditions in cases.items():
        folder(tmp_path, family, {name: old(name, **conditions)})
    migrate(tmp_path)
    found = {
        path.stem: next(iter(json.loads(path.read_text())["entries"].values()))["conditions"].get("engine_args", "unknown")
        for path in tmp_path.rglob("*.json")
    }
    assert found == {"throughput_decode": {}, "serving_latency": args, "tokens": "unknown"}


def test_files_of_older_names_are_renamed(tmp_path: Path) -> None:
    name = "vllm-none-bf16-kv_bf16"
    was = folder(tmp_path, "memory_ledger", {name: old(name)})
    migrate(tmp_path)
    assert not was.exists()
    record = Store(tmp_path).load(BaselineKey("any", "m", "memory_profile", "vllm-none-auto-kv_auto"))
    assert record is not None
    assert record.expected == {"of": name}


def test_a_file_of_an_older_name_joins_that_of_today_unless_both_hold_one_entry(tmp_path: Path) -> None:
    name = "vllm-none-bf16-kv_bf16"
    today = {"schema": document.SCHEMA, "family": "memory_profile", "entries": {"vllm-nf4-auto-kv_auto": old("nf4")}}
    was = folder(tmp_path, "memory_ledger", {name: old(name)})
    path = was.with_name("memory_profile.json")
    path.write_text(json.dumps(today))
    migrate(tmp_path)
    assert set(json.loads(path.read_text())["entries"]) == {"vllm-none-auto-kv_auto", "vllm-nf4-auto-kv_auto"}
    folder(tmp_path, "memory_ledger", {name: old(name)})
    steps, problems = plan(tmp_path)
    assert steps == []
    assert [problem.partition(" is ")[2] for problem in problems] == [
        f"{path} today, and both hold 'vllm-none-auto-kv_auto': remove one of them"
    ]


def test_a_snapshot_is_filed_under_its_repository_with_all_that_is_beside_it(tmp_path: Path) -> None:
    commits, name = ["0" * 39 + "1", "0" * 39 + "2", "0" * 39 + "3"], "vllm-none-bf16-kv_bf16"
    content = side_files.pack({"a": np.zeros(3)})
    reference = side_files.refer("divergence", content)
    for commit in commits:
        where = "" if commit == commits[2] else "~/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/"
        before = old(name, f"pytest --model={where}{commit}")
        before["expected"]["side_file"] = reference
        model = folder(tmp_path, "divergence", {name: before}, model=f"any/{commit}").parent
        (model / reference["name"]).write_bytes(content)
    past = {"record": "r", "date": "d", "outcomes": "1", "p_value": 0.5, "log_e": 0.0}
    (tmp_path / "any" / commits[0] / "ledger.jsonl").write_text(json.dumps({"entry": name, **past}))
    steps, problems = plan(tmp_path)
    for step in steps:
        step.take()
    path = tmp_path / "any" / "qwen-qwen3-0.6b" / "divergence.json"
    assert [problem.partition(" is ")[2] for problem in problems] == [
        f"{path} today, and so is another: migrate again once that is written"
    ]
    assert {file.relative_to(tmp_path / "any").parts[0] for file in tmp_path.rglob("*.json")} == {"qwen-qwen3-0.6b", *commits[1:]}
    moved = Store(tmp_path).load(BaselineKey("any", "Qwen/Qwen3-0.6B", "divergence", "vllm-none-auto-kv_auto"))
    assert moved is not None
    assert side_files.load(moved.expected["side_file"], [path.parent]) == content
    assert len(run_history.read(path.parent / run_history.FILE, entry="vllm-none-auto-kv_auto", record="r")) == 1
    assert not (tmp_path / "any" / commits[0]).exists()
    steps, problems = plan(tmp_path)
    assert steps == []
    assert [problem.partition(" is ")[2] for problem in problems] == [
        f"{path} today, and both hold 'vllm-none-auto-kv_auto': remove one of them"
    ]


def test_past_runs_keep_to_their_record(tmp_path: Path) -> None:
    fp16 = "transformers-none-fp16-kv_fp16"
    model = folder(tmp_path, "gsm8k", {fp16: old(fp16, "pytest --dtype=fp16")}).parent
    folder(tmp_path, "tokens", {fp16: old(fp16)})
    past = {"record": "r", "date": "d", "outcomes": "101", "p_value": 0.5, "log_e": 0.0}
    lines = [{"entry": f"{fp16}-tp2", **past}, {"mended": "done", "entry": fp16}, {"entry": fp16, **past}, {"mended": "all"}]
    (model / "ledger.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines[:2]))
    (model / run_history.FILE).write_text(json.dumps(lines[2]))
    migrate(tmp_path)
    assert not (model / "ledger.jsonl").exists()
    path = model / run_history.FILE
    assert [len(run_history.read(path, entry=f"transformers-none-fp16-kv_auto{words}", record="r")) for words in ("", "-tp2")] == [
        1,
        1,
    ]
    assert plan(tmp_path) == ([], [])


def test_a_file_that_cannot_be_read_is_told_and_stays_and_the_others_are_migrated(tmp_path: Path) -> None:
    name = "vllm-none-bf16-kv_bf16"
    fine = folder(tmp_path, "tokens", {name: old(name)})
    broken = fine.with_name("gsm8k.json")
    broken.write_text("{")
    steps, problems = plan(tmp_path)
    assert [step.path for step in steps] == [fine]
    assert [str(broken) in problem for problem in problems] == [True]


def test_the_command_changes_nothing_before_it_is_told_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "vllm-none-bf16-kv_bf16"
    path = folder(tmp_path, "tokens", {name: old(name)})
    before = path.read_bytes()
    assert main(["baselines", "migrate", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "any/m/tokens.json",
        "    vllm-none-bf16-kv_bf16 → vllm-none-auto-kv_auto",
        "1 file to migrate; nothing is written yet: add --write",
    ]
    assert path.read_bytes() == before
    assert main(["baselines", "migrate", str(tmp_path), "--write"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 file migrated"
    assert document.read(path) is not None
    assert main(["baselines", "migrate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to migrate\n"
    path.write_text("{")
    assert main(["baselines", "migrate", str(tmp_path)]) == 1
    assert main(["baselines", "migrate", str(tmp_path / "typo")]) == 2


def test_the_records_of_the_project_are_up_to_date() -> None:
    assert plan(BASELINES) == ([], [])
