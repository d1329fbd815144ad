"""The parts of the SGLang backend that need no SGLang: its arguments, answers, settings and reports."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError, EngineError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.sglang import arguments, generation, reports, settings

KNOWN = (*arguments.CPU_DEFAULTS, "context_length", "chunked_prefill_size", "model_path", "load_format")
SAMPLING = {
    "max_tokens": 5,
    "temperature": 0,
    "top_p": 1,
    "top_k": -1,
    "repetition_penalty": 1,
    "seed": 3,
    "stop_token_ids": [],
    "ignore_eos": False,
}


def given(
    cell: str = "sglang", engine_args: Any = None, *, known: tuple[str, ...] | list[Any] = KNOWN, **facts: Any
) -> dict[str, Any]:
    facts = {"on_cpu": True, **facts}
    return arguments.engine_arguments(EngineSpec.parse(cell), "/model", engine_args or {}, known=known, **facts)


def test_the_cell_is_said_in_sglangs_words() -> None:
    found = given("sglang-dummy-fp16-kv_fp8-tp2-dp2-native", on_cpu=False)
    assert (found["dtype"], found["kv_cache_dtype"], found["load_format"]) == ("float16", "fp8_e4m3", "dummy")
    assert (found["tp_size"], found["pp_size"], found["dp_size"], found["skip_tokenizer_init"]) == (2, 1, 2, True)
    assert not {"device", "attention_backend", "sampling_backend", "max_total_tokens"} & set(found)
    assert given("sglang-fp16-kv_fp16")["kv_cache_dtype"] == "auto"


def test_a_cpu_gets_what_it_needs_unless_the_user_says_otherwise_or_the_version_lacks_it() -> None:
    assert {**given(), **arguments.CPU_DEFAULTS, "device": "cpu"} == given()
    assert given(positions=32768)["max_total_tokens"] == 32768
    assert given(engine_args={"max_total_tokens": 77, "attention_backend": "x"})["max_total_tokens"] == 77
    assert "sleep_on_idle" not in given(known=[name for name in KNOWN if name != "sleep_on_idle"])


@pytest.mark.parametrize(
    ("cell", "engine_args", "quant_method", "error", "words"),
    [
        ("sglang", {"contxt_length": 5}, "", BadInputError, "'contxt_length'.*Did you mean 'context_length'"),
        ("sglang", {"tp_size": 5}, "", BadInputError, "'tp_size' is no engine argument here"),
        ("sglang-gptq", {}, "", BadInputError, "gptq is a property of the checkpoint, and /model is not quantized"),
        ("sglang-gptq", {}, "awq", BadInputError, "/model is quantized with awq"),
        ("sglang", {}, "awq", BadInputError, "/model is quantized .awq., but the cell says none"),
        ("sglang-int8", {}, "", UnsupportedError, "cannot load int8"),
        ("sglang-q4_k_m", {}, "", UnsupportedError, "cannot load q4_k_m"),
        ("sglang-fp16-kv_fp32", {}, "", UnsupportedError, "no cache in fp32"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    cell: str, engine_args: Any, quant_method: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        given(cell, engine_args, quant_method=quant_method)


def test_quantizations_are_asked_for_or_left_to_the_checkpoint() -> None:
    assert "quantization" not in given("sglang-w4a16", quant_method="compressed-tensors")
    assert given("sglang-fp8")["quantization"] == "fp8"
    for method in ("fp8", "compressed-tensors"):
        assert "quantization" not in given("sglang-fp8", quant_method=method)
    assert (given("sglang-nf4")["quantization"], given("sglang-nf4")["load_format"]) == ("bitsandbytes", "bitsandbytes")


@pytest.mark.parametrize(("cell", "method"), [("gptq", "gptq"), ("awq", "awq"), ("w8a8", "compressed-tensors"), ("fp8", "")])
def test_quantized_weights_are_refused_on_a_processor_without_kernels_for_them(cell: str, method: str) -> None:
    with pytest.raises(UnsupportedError, match=f"sglang has no kernels for {cell} weights on this processor"):
        given(f"sglang-{cell}", quant_method=method, has_cpu_kernels=False)
    assert given(f"sglang-{cell}", quant_method=method, has_cpu_kernels=False, on_cpu=False)
    assert given("sglang", has_cpu_kernels=False)


def test_cores_are_shared_out_over_the_ranks() -> None:
    assert arguments.core_bindings([0, 1, 2, 3], 2) == "0,1|2,3"
    assert arguments.core_bindings([4, 7, 9], 2) == "4|7"
    assert arguments.core_bindings([5], 2) == "5|5"


def output(token_ids: list[Any], kind: str = "stop", **information: Any) -> dict[Any, Any]:
    return {"output_ids": token_ids, "meta_info": {"finish_reason": {"type": kind, "message": "full"}, **information}}


def test_an_answer_ends_where_an_end_token_is() -> None:
    assert generation.answer(output([5, 6, 2], cached_tokens=7), [2], top=0) == {
        "token_ids": [5, 6, 2],
        "finish_reason": "stop",
        "cached_tokens": 7,
    }
    # Under ignore_eos SGLang goes past stop tokens, and says "length".
    cut = generation.answer(output([5, 6, 7], "length", output_top_logprobs=[[(-0.5, 5, None)], [(-1, 6, None)], []]), [6], top=1)
    assert (cut["token_ids"], cut["finish_reason"]) == ([5, 6], "stop")
    np.testing.assert_array_equal(cut["top_ids"], [[5], [6]])
    np.testing.assert_array_equal(cut["top_logprobs"], np.array([[-0.5], [-1]], np.float32))
    assert generation.answer(output([5, 6], "length"), [2], top=0)["finish_reason"] == "length"


def test_an_answer_that_was_given_up_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"gave a request up \(abort\): full"):
        generation.answer(output([5], "abort"), [2], top=0)
    with pytest.raises(EngineError, match="2 tokens, and log-probabilities of 1 steps"):
        generation.answer(output([5, 6], output_top_logprobs=[[(-1, 5, None)]]), [], top=1)


def test_scores_belong_to_the_tokens_that_were_asked() -> None:
    scored = output([], input_token_logprobs=[(None, 5, None), (-1.5, 6, None), (-2.5, 7, None)])
    np.testing.assert_array_equal(generation.prompt_logprobs(scored, [5, 6, 7]), np.array([-1.5, -2.5], np.float32))
    for other in ([5, 6], [5, 6, 8]):
        with pytest.raises(EngineError, match="was asked to score"):
            generation.prompt_logprobs(scored, other)


def test_every_choice_of_sampling_is_spelled_out() -> None:
    params = generation.sampling_params({**SAMPLING, "ignore_eos": True}, [2, 9])
    assert (params["max_new_tokens"], params["stop_token_ids"], params["ignore_eos"], params["sampling_seed"]) == (
        5,
        [2, 9],
        True,
        3,
    )
    assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"} <= set(params)


def test_settings_are_plain_and_hold_no_place_or_secret() -> None:
    @dataclasses.dataclass
    class ServerArgs:
        model_path: str
        port: int = 30000
        api_key: str | None = None
        page_size: int = 1
        mm_transport: str = "cpu"
        names: set[Any] = dataclasses.field(default_factory=lambda: {"b", "a"})
        _hidden: int = 1

    known = settings.defaults(ServerArgs)
    assert known["model_path"] is None
    found = settings.resolved({**known, "page_size": 64, "hook": print, "names": {"b", "a"}}, known, {"dtype": "bfloat16"})
    assert found == {"dtype": "bfloat16", "mm_transport": "cpu", "names": ["a", "b"], "page_size": 64}
    assert settings.plain({"one": (1, object()), "two": signal.SIGTERM}) == {"one": [1, "object"], "two": 15}


PLACES = [{"tp_rank": tp, "pp_rank": 0, "dp_rank": dp, "pid": os.getpid()} for dp in (1, 0) for tp in (1, 0)]


def test_a_pool_adds_up_over_the_ranks_of_one_replica() -> None:
    part = {"tokens": 128, "slots": 192, "page_size": 64, "dtype": "bfloat16", "stored_bytes": 192 * 1024}
    pool = reports.kv_pool(PLACES, [part] * 4, 100)
    assert pool == {
        "num_blocks": 2,
        "block_size": 64,
        "capacity_tokens": 128,
        "dtype": "bfloat16",
        "stored_bytes": 2 * 192 * 1024,
        "bytes_per_token": 2048,
        "max_model_len": 100,
    }
    with pytest.raises(EngineError, match="different pools"):
        reports.kv_pool(PLACES, [part, part, part, {**part, "tokens": 64}], 100)
    reports.check_pool(None, pool)
    reports.check_pool(190, pool)  # rounded down to whole pages
    with pytest.raises(OutOfMemoryError, match="max_total_tokens=192 was asked for, and there is memory for a pool of 128"):
        reports.check_pool(192, pool)


def test_ranks_layout_and_memory_of_several_processes() -> None:
    assert [(rank["dp_rank"], rank["tp_rank"]) for rank in reports.ranks(PLACES)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    answers = [{"parameters": [number], "tied": []} for number in range(4)]
    assert reports.layout(PLACES, answers)["ranks"] == [
        {"parameters": [number], "tied": [], "tp_rank": 3 - number, "pp_rank": 0} for number in (2, 3)
    ]
    assert reports.layout(PLACES[3:], answers[3:])["parameters"] == [3]
    assert reports.memory([{"device": "cpu", "bytes": 5}, {"device": "cpu", "bytes": 7}]) == {"device": "cpu", "bytes": 7}


def test_end_tokens_come_from_the_generation_configuration_first(tmp_path: Path) -> None:
    assert reports.end_token_ids(str(tmp_path), {"eos_token_id": 5}) == [5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert reports.end_token_ids(str(tmp_path), {"eos_token_id": 5}) == [2, 7]
    assert reports.end_token_ids("some/model", {}) == []
