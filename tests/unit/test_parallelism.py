"""Ranks, their shares of the weights, and whether one GPU is fit to be a reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.memory.check import predict_weights
from pytest_llminfer.families.parallelism.check import check_rank_weights, check_ranks, check_reference_answers
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.engine import Rank
from pytest_llminfer.predict.ranks import expected_rank_weights
from pytest_llminfer.verdict import Outcome

LLAMA = ModelShape("llama", layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=768, vocab=1000, tied=False)


def ranks(tp: int = 1, pp: int = 1, dp: int = 1, weights: int = 100) -> list[Any]:
    return [
        Rank(100 + 16 * d + 4 * p + t, "rank", f"GPU-{d}-{p}-{t}", weights, tp_rank=t, pp_rank=p, dp_rank=d)
        for d in range(dp)
        for p in range(pp)
        for t in range(tp)
    ]


@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)])
def test_every_rank_in_its_place(tp: int, pp: int, dp: int) -> None:
    verdict = check_ranks(ranks=ranks(tp, pp, dp), tp=tp, pp=pp, dp=dp)
    assert verdict.outcome is Outcome.PASS
    assert verdict.key == f"{tp * pp * dp} ranks"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ([], "nothing was compared"),
        (ranks(tp=1), "1 ranks instead of 2"),
        (ranks(tp=3), "there should be no dp rank 0, pp rank 0, tp rank 2"),
        ([ranks()[0]] * 2, "2 processes have dp rank 0, pp rank 0, tp rank 0"),
        ([replace(rank, pid=7) for rank in ranks(tp=2)], "process 7 stands for 2 ranks"),
        ([replace(rank, device="GPU-0") for rank in ranks(tp=2)], "2 ranks share the accelerator GPU-0"),
        (ranks(dp=2), "no process has dp rank 0, pp rank 0, tp rank 1"),
    ],
)
def test_ranks_that_are_missing_doubled_or_misplaced(found: Any, line: str) -> None:
    verdict = check_ranks(ranks=found, tp=2, pp=1, dp=1)
    assert verdict.outcome is Outcome.FAIL
    assert any(line in detail for detail in verdict.details)


def test_ranks_on_a_processor_share_it() -> None:
    found = [replace(rank, device="cpu") for rank in ranks(tp=2)]
    assert check_ranks(ranks=found, tp=2, pp=1, dp=1).outcome is Outcome.PASS


# A layer of LLAMA: queries, keys, values and output, three matrices of the MLP, two norms.
LAYER = (256 + 128 + 128 + 256) * 256 + 3 * 256 * 768 + 2 * 256


@pytest.mark.parametrize(("engine", "vocabulary"), [("transformers", 1000), ("vllm", 1024), ("sglang", 1024)])
def test_one_rank_holds_what_the_model_weighs(engine: str, vocabulary: int) -> None:
    cell: dict[str, Any] = {"shape": LLAMA, "dtype": "bf16", "quantization": "none", "engine": profile(engine)}
    whole = 2 * (4 * LAYER + 256 + 2 * vocabulary * 256)
    assert expected_rank_weights(**cell, tp=1, pp=1) == {0: whole}
    assert predict_weights(**cell) == whole


def test_a_share_by_hand() -> None:
    hidden, inner, queries, keys = 256, 768, 256, 128
    layer = (queries + 2 * keys) * hidden // 2 + hidden * queries // 2 + 3 * hidden * inner // 2 + 2 * hidden
    whole_ends = 2 * 1000 * hidden + hidden
    padded_ends = 2 * 1024 * hidden // 2 + hidden
    expected = {"transformers": 4 * layer + whole_ends, "vllm": 4 * layer + padded_ends}
    for engine, elements in expected.items():
        share = expected_rank_weights(shape=LLAMA, dtype="bf16", quantization="none", engine=profile(engine), tp=2, pp=1)
        assert share == {0: 2 * elements}


def test_the_engine_says_whether_the_ends_are_shared_out() -> None:
    cell: dict[str, Any] = {
        "shape": LLAMA,
        "dtype": "fp32",
        "quantization": "none",
        "engine": profile("transformers"),
        "tp": 2,
        "pp": 1,
    }
    whole, ends, nothing = (
        expected_rank_weights(**cell, plan=plan)[0] for plan in ((), ("model.embed_tokens", "lm_head"), ("model.norm",))
    )
    assert whole == nothing
    assert whole - ends == 2 * (4 * 1000 * 256) // 2


def test_stages_hold_their_layers_and_the_ends() -> None:
    stages = expected_rank_weights(shape=LLAMA, dtype="fp32", quantization="none", engine=profile("vllm"), tp=1, pp=2)
    assert stages == {0: 4 * (2 * LAYER + 1024 * 256), 1: 4 * (2 * LAYER + 1024 * 256 + 256)}, "the last has the final norm"


def test_a_tied_embedding_is_on_the_first_and_the_last_stage() -> None:
    tied = replace(LLAMA, tied=True)
    stages = expected_rank_weights(shape=tied, dtype="fp32", quantization="none", engine=profile("vllm"), tp=1, pp=4)
    ends, layer = 4 * 1024 * 256, 4 * LAYER
    assert stages == {0: layer + ends, 1: layer, 2: layer, 3: layer + 4 * 256 + ends}


@pytest.mark.parametrize(("tp", "keys"), [(2, 64), (4, 64)])
def test_more_ranks_than_kv_heads_hold_each_several_times(tp: int, keys: int) -> None:
    """Two KV heads of 64: one of each to a rank, whether there are two of those or four."""
    share = expected_rank_weights(shape=LLAMA, dtype="fp32", quantization="none", engine=profile("vllm"), tp=tp, pp=1)
    layer = (256 // tp + 2 * keys + 256 // tp) * 256 + 3 * 256 * 768 // tp + 2 * 256
    assert share == {0: 4 * (4 * layer + 256 + 2 * 1024 * 256 // tp)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pp": 3}, "layers do not divide by pp=3"),
        ({"quantization": "exl2"}, "exl2"),
        ({"engine": "llamacpp", "tp": 2}, "llamacpp does not split a model"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    cell = {"dtype": "bf16", "quantization": "none", "tp": 1, "pp": 1, **fields}
    cell["engine"] = profile(cell.get("engine", "vllm"))
    with pytest.raises(UnsupportedError, match=said):
        expected_rank_weights(shape=LLAMA, **cell)


@pytest.mark.parametrize(
    ("weights", "outcome"), [(1000, "pass"), (1002, "pass"), (1004, "fail"), (996, "fail"), (2000, "fail"), (0, "fail")]
)
def test_shares_are_two_sided(weights: int, outcome: str) -> None:
    found = [*ranks(weights=1000), replace(ranks(tp=2)[1], weights_bytes=weights)]
    verdict = check_rank_weights(ranks=found, expected={0: 1000}, engine=profile("vllm"))
    assert verdict.outcome.value == outcome


def test_no_ranks_are_no_pass() -> None:
    assert check_rank_weights(ranks=[], expected={0: 1000}, engine=profile("vllm")).outcome is Outcome.FAIL


@pytest.mark.parametrize(("right", "asked", "outcome"), [(9, 10, "pass"), (0, 10, "inconclusive"), (0, 0, "fail")])
def test_a_reference_must_know_something(right: int, asked: int, outcome: str) -> None:
    answers = {
        str(number): Answer(strict=False, flexible=number < right, format_miss=False, truncated=False) for number in range(asked)
    }
    assert check_reference_answers(answers=answers).outcome.value == outcome


def test_one_rank_on_the_cpu_among_others_is_a_fault() -> None:
    ranks = [
        Rank(pid=10 + number, name="r", device=device, weights_bytes=1, tp_rank=number)
        for number, device in enumerate(("cuda:0", "cpu"))
    ]
    verdict = check_ranks(ranks=ranks, tp=2, pp=1, dp=1)
    assert verdict.outcome is Outcome.FAIL
    assert any("tp rank 1 is on the CPU" in line for line in verdict.details)
