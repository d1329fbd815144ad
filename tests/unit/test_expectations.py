"""What a cell is judged against: the record of what was asked, under equal conditions; and what is no comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_llminfer.baselines.expectations import Baseline, Recording, SessionRecords
from pytest_llminfer.baselines.notes import MISSING, RECORD, USED
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.errors import BaselineError, BaselineRecordedError, MissingBaselineError
from pytest_llminfer.hardware import Hardware
from pytest_llminfer.spec import EngineSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.verdict import Verdict


class _UnfairError(Exception):
    """A comparison that was called unfair, with the details of its verdict."""


class Session:
    """A project with records, and cells that are asked for theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[BaselineKey, Record] = {}
        self.notes: list[tuple[str, Mapping[str, Any]]] = []

    def load(self, key: BaselineKey) -> Record | None:
        return self.records.get(key)

    def expected(self, cell: str, *, update: str = "", **said: Any) -> Any:
        """What ``Baseline.expected`` returns to a cell. said: of the engine and its model; ``which``: of the record."""
        spec = EngineSpec.parse(cell)
        dtype = said.get("dtype", "bf16" if spec.dtype == "auto" else spec.dtype)
        kv_dtype = said.get("kv_dtype", dtype if spec.kv_dtype == "auto" else spec.kv_dtype)
        info = SimpleNamespace(dtype=dtype, kv_dtype=kv_dtype, device="cpu", versions={}, served_model=said.get("served", ""))
        model = SimpleNamespace(id="m", sha256=said.get("sha256", "s"), revision=said.get("revision", ""))
        engine = SimpleNamespace(spec=spec, info=info, model=model, engine_args=said.get("args", {}))
        baseline = Baseline(
            engine=cast("Engine", engine),
            source=self,
            session=SessionRecords(),
            hardware=Hardware("", 0, "cpu", 2),
            recording=Recording(self.folder, update, self.folder, {}),
            judge=self._judge,
            note=lambda name, value: self.notes.append((name, value)),
        )
        which = said.get("which", {})
        return baseline.expected(
            said.get("family", "tokens"),
            observe=lambda *_: said.get("observed", {"ids": [1]}),
            conditions=said.get("conditions", {"prompt": "p"}),
            n=said.get("n", 1),
            **which,
        )

    def record(self, cell: str, **said: Any) -> str:
        """Record what the cell shows, and the name of its entry."""
        with pytest.raises(BaselineRecordedError, match=r"^baseline recorded: "):
            self.expected(cell, update="all", **said)
        note = next(value for name, value in reversed(self.notes) if name == RECORD)
        key = BaselineKey(**note["key"])
        self.records[key] = Record(note["expected"], note["conditions"], note["provenance"])
        return key.entry

    @staticmethod
    def _judge(verdict: Verdict) -> None:
        raise _UnfairError(*verdict.details)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_a_record_is_filed_under_what_was_asked_and_says_what_that_came_to(session: Session) -> None:
    assert session.record("vllm-kv_fp8") == "vllm-none-auto-kv_fp8"
    (record,) = session.records.values()
    assert record.conditions == {
        "prompt": "p", "dtype": "bf16", "kv_dtype": "fp8", "model_sha256": "s", "engine_args": {},
    }  # fmt: skip
    assert session.expected("vllm-kv_fp8") == {"ids": [1]}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"dtype": "fp16", "kv_dtype": "bf16"}, "dtype: recorded 'bf16', now 'fp16'"),
        ({"kv_dtype": "fp8"}, "kv_dtype: recorded 'bf16', now 'fp8'"),
        ({"sha256": "t"}, "model_sha256: recorded 's', now 't'"),
        ({"args": {"attention_backend": "triton"}}, "engine_args.attention_backend: recorded '(absent)', now 'triton'"),
    ],
)
def test_what_moved_while_the_same_was_asked_is_named(session: Session, now: dict[str, Any], told: str) -> None:
    session.record("vllm")
    with pytest.raises(_UnfairError, match="recorded") as caught:
        session.expected("vllm", **now)
    assert caught.value.args == (told,)


def test_another_served_model_or_body_is_another_thing(session: Session) -> None:
    cell = "openai@http://host:1/v1"
    session.record(cell, served="org/name:free", args={"model": "org/name:free", "extra_body": {"top_k": 1}})
    for served, body, told in (
        ("other/model-70b", {"top_k": 1}, "served_model: recorded 'org/name:free', now 'other/model-70b'"),
        ("org/name:free", {"top_k": 2}, "engine_args.extra_body.top_k: recorded 1, now 2"),
    ):
        with pytest.raises(_UnfairError, match="recorded") as caught:
            session.expected(cell, served=served, args={"model": served, "extra_body": body})
        assert caught.value.args == (told,)
    assert session.expected(cell, served="org/name:free", args={"timeout": 5, "extra_body": {"top_k": 1}}) == {"ids": [1]}


@pytest.mark.parametrize("arguments", ["all", "answers", "none"])
def test_how_much_of_a_device_is_taken_decides_memory_and_no_answer(session: Session, arguments: str) -> None:
    session.record("vllm", which={"arguments": arguments})
    args = {"gpu_memory_utilization": 0.5}
    if arguments == "all":
        with pytest.raises(_UnfairError, match="recorded"):
            session.expected("vllm", args=args, which={"arguments": arguments})
    else:
        assert session.expected("vllm", args=args, which={"arguments": arguments}) == {"ids": [1]}
    if arguments == "none":
        assert session.expected("vllm", args={"dtype": "x"}, which={"arguments": arguments}) == {"ids": [1]}


def test_secrets_among_arguments_are_not_recorded(session: Session) -> None:
    session.record("openai@http://host:1/v1", args={"extra_body": {"provider": {"api_key": "sk-1"}, "max_tokens": 5}})
    (record,) = session.records.values()
    assert record.conditions["engine_args"] == {"extra_body": {"provider": {"api_key": "***"}, "max_tokens": 5}}


def test_what_a_record_of_schema_1_does_not_know_is_not_compared(session: Session) -> None:
    session.record("vllm")
    ((key, record),) = session.records.items()
    conditions = {name: value for name, value in record.conditions.items() if name != "engine_args"}
    session.records[key] = replace(record, conditions=conditions)
    assert session.expected("vllm", args={"attention_backend": "triton"}) == {"ids": [1]}


def test_a_revision_explains_other_weights_and_is_no_difference_by_itself(session: Session) -> None:
    session.record("vllm", revision="a")
    assert session.expected("vllm", revision="b") == {"ids": [1]}
    with pytest.raises(_UnfairError, match="recorded") as caught:
        session.expected("vllm", revision="b", sha256="t")
    assert caught.value.args == ("model_sha256: recorded 's', now 't'", "revision: recorded 'a', now 'b'")


@pytest.mark.parametrize(("recorded", "asked"), [("vllm", "vllm-bf16"), ("vllm-bf16", "vllm"), ("vllm-kv_bf16", "vllm")])
def test_the_same_dtypes_in_other_words_are_the_same_record(session: Session, recorded: str, asked: str) -> None:
    session.record(recorded)
    assert session.expected(asked) == {"ids": [1]}
    with pytest.raises(MissingBaselineError, match=r"^no baseline"):
        session.expected(asked.replace("bf16", "fp16"), dtype="fp16")


def test_a_reference_is_one_at_the_dtypes_of_the_cell(session: Session) -> None:
    which = {"by": "transformers"}
    session.record("transformers")
    assert session.expected("vllm", args={"block_size": 16}, which=which) == {"ids": [1]}
    with pytest.raises(MissingBaselineError, match=r"^no baseline") as caught:
        session.expected("vllm", dtype="fp16", which=which)
    assert str(caught.value) == (
        "no baseline for any/m/tokens/transformers-none-fp16-kv_fp16; record it with --engine=transformers and --dtype=fp16 "
        "and --kv-dtype=fp16 and --update-baselines=new"
    )
    session.record("transformers-fp16", observed={"ids": [2]})
    assert session.expected("vllm", dtype="fp16", which=which) == {"ids": [2]}
    assert [BaselineKey(**note).entry for name, note in session.notes if name == USED] == [
        "transformers-none-auto-kv_auto", "transformers-none-fp16-kv_auto",
    ]  # fmt: skip


def test_a_quantized_cell_is_held_against_the_unquantized_one_whatever_their_arguments(session: Session) -> None:
    session.record("vllm")
    assert session.expected("vllm-awq", args={"load_format": "x"}, which={"unquantized": True}) == {"ids": [1]}
    with pytest.raises(MissingBaselineError, match=r"^no baseline"):
        session.expected("vllm-awq")


def test_what_is_missing_is_noted(session: Session) -> None:
    with pytest.raises(MissingBaselineError, match="no baseline for any/m/tokens/vllm-none-auto-kv_auto; record it with"):
        session.expected("vllm-tp2")
    ((name, note),) = session.notes
    assert name == MISSING
    assert note["same_command"] is False


def test_a_record_of_something_else_is_replaced_only_if_that_is_asked_for(session: Session) -> None:
    session.record("vllm")
    for update in ("all", "new"):
        with pytest.raises((BaselineError, _UnfairError)) as caught:
            session.expected("vllm", sha256="t", update=update)
        assert "model_sha256: recorded 's', now 't'" in str(caught.value)
    with pytest.raises(
        BaselineError, match=r"is of something else .* and stays: give this model a name of its own with --llminfer-"
    ):
        session.expected("vllm", sha256="t", update="all")
    assert [name for name, _ in session.notes].count(RECORD) == 1
    with pytest.raises(BaselineRecordedError, match=r"^baseline recorded: "):
        session.expected("vllm", sha256="t", update="replace")
    assert session.notes[-1][1]["replaced"] == ["model_sha256: recorded 's', now 't'"]


def test_a_record_made_otherwise_is_replaced_and_that_is_told(session: Session) -> None:
    session.record("vllm")
    session.record("vllm", conditions={"prompt": "q"})
    assert session.notes[-1][1]["replaced"] == ["prompt: recorded 'p', now 'q'"]
    session.record("vllm", conditions={"prompt": "q"})
    assert session.notes[-1][1]["replaced"] == []


def test_nothing_observed_is_nothing_recorded(session: Session) -> None:
    with pytest.raises(BaselineError, match="nothing was observed for any/m/tokens/vllm-none-auto-kv_auto: nothing is recorded"):
        session.expected("vllm", update="all", n=0)
    assert session.notes == []


def test_a_value_of_another_shape_is_one_line_with_file_and_entry(session: Session) -> None:
    which = {"read": lambda expected: [int(number) for number in expected["ids"]]}
    session.record("vllm", observed={"ids": ["x"]}, which=which)
    for wrong in ({"ids": ["x"]}, {"ids": 7}, {"ids": None}, {}):
        ((key, record),) = session.records.items()
        session.records[key] = replace(record, expected=wrong)
        with pytest.raises(BaselineError, match=r"^baseline file ") as caught:
            session.expected("vllm", which=which)
        told = str(caught.value)
        assert told.startswith(
            "baseline file any/m/tokens.json, entry 'vllm-none-auto-kv_auto': 'expected' is not what its family "
        )
        assert "\n" not in told
    session.record("vllm", observed={"ids": [1]}, which=which)
    assert session.notes[-1][1]["replaced"] == ["it could not be read"]
