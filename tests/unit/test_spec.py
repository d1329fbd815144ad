"""The cell: its id, the way back, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.spec import DTYPES, ENGINES, KV_DTYPES, QUANTIZATIONS, WEIGHTS, EngineSpec

specs = st.builds(
    EngineSpec,
    engine=st.sampled_from(ENGINES),
    environment=st.sampled_from(["", "/opt/venv-1/bin/python", "python3.12", "http://host:8000/v1"]),
    model=st.sampled_from(["reference", "llama-3-8b", "Qwen/Qwen2.5-7B-Instruct", "/models/tp2-nf4"]),
    weights=st.sampled_from(WEIGHTS),
    dtype=st.sampled_from(DTYPES),
    quantization=st.sampled_from(QUANTIZATIONS),
    kv_dtype=st.sampled_from(KV_DTYPES),
    tp=st.integers(1, 8),
    pp=st.integers(1, 4),
    dp=st.integers(1, 4),
)


@given(specs)
def test_parse_is_the_inverse_of_str(spec: EngineSpec) -> None:
    assert EngineSpec.parse(str(spec)) == spec


@given(specs, specs)
def test_ids_differ_where_specs_do(first: EngineSpec, second: EngineSpec) -> None:
    assert (str(first) == str(second)) == (first == second)
    assert (hash(first) == hash(second)) or first != second


def test_defaults_are_left_out_of_the_id() -> None:
    assert str(EngineSpec("transformers", quantization="nf4", tp=2)) == "transformers-nf4-tp2"
    assert str(EngineSpec("simulated")) == "simulated"


def test_the_number_of_gpus_is_the_product() -> None:
    assert EngineSpec("transformers", tp=2, pp=3, dp=4).num_gpus == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vlm", "unknown engine 'vlm'; valid: simulated, transformers."),
        ("transformers-nf5", "unknown word 'nf5'; valid: real, dummy, auto,.* Did you mean 'nf4'"),
        ("transformers-nf4-int8", "one quantization only"),
        ("transformers-tp0", "unknown tp 0"),
        ("transformers-kv_fp7", "unknown kv_dtype 'fp7'"),
        ("", "unknown engine ''"),
    ],
)
def test_what_names_nothing_is_refused_with_the_valid_words(text: str, message: str) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        EngineSpec.parse(text)
