"""Short names of cells: never two alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.report.names import short_names


def test_an_environment_that_all_share_is_left_out() -> None:
    cells = ["vllm@/opt/a/bin/python", "vllm-tp2@/opt/a/bin/python", "transformers"]
    assert list(short_names(cells).values()) == ["vllm", "vllm-tp2", "transformers"]


def test_environments_that_tell_cells_apart_are_shown_by_name() -> None:
    cells = ["vllm@/opt/vllm-0.32/bin/python", "vllm@/opt/vllm-0.33/bin/python3", "vllm@vllm==0.31.0", "vllm", "openai@http://a/v1"]
    shown = ["vllm@vllm-0.32", "vllm@vllm-0.33", "vllm@vllm==0.31.0", "vllm", "openai@http://a/v1"]
    assert list(short_names(cells).values()) == shown


def test_names_that_would_be_alike_stay_whole() -> None:
    cells = ["vllm@/a/venv/bin/python", "vllm@/b/venv/bin/python"]
    assert short_names(cells) == {cell: cell for cell in cells}


@given(st.lists(st.from_regex(r"\A[a-z]{1,2}(@(/[a-c]{1,2}){0,3}(/bin/python)?)?\Z")))
def test_no_two_cells_are_shown_alike(cells: list[str]) -> None:
    names = short_names(cells)
    assert len(set(names.values())) == len(set(cells)) == len(names)
