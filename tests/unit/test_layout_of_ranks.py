"""The layout of every rank of a split model: what is dealt, what is copied, and each way of getting that wrong."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.layout.ranks import check_rank_layouts, check_ranks_unchanged, summarise_ranks
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Layout
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.held_by_ranks import SPLIT as SHAPE
from tests.support.held_by_ranks import held_by_ranks, packed_on_ranks

ENDS = ("model.embed_tokens", "lm_head")
DOWN = "model.layers.2.mlp.down_proj.weight"
QKV = "model.layers.2.self_attn.qkv_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"
every_engine = pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang"])


def check(
    ranks: Any,
    engine: Any = "vllm",
    tp: int = 2,
    pp: int = 1,
    quantization: str = "none",
    shape: ModelShape = SHAPE,
    plan: tuple[str, str] = ENDS,
    **options: Any,
) -> Verdict:
    of = {"ranks": ranks, "shape": shape, "dtype": "bfloat16", "quantization": quantization, "engine": profile(engine)}
    return check_rank_layouts(**of, tp=tp, pp=pp, plan=plan, **options)


def changed(ranks: Any, number: int, name: str, **fields: Any) -> list[Any]:
    """The ranks, one parameter of the rank with this number otherwise."""
    assert name in {each.name for each in ranks[number].parameters}
    parameters = tuple(replace(each, **fields) if each.name == name else each for each in ranks[number].parameters)
    return [*ranks[:number], replace(ranks[number], parameters=parameters), *ranks[number + 1 :]]


@every_engine
@pytest.mark.parametrize("tp", [1, 2])
def test_what_every_rank_should_hold_passes(engine: str, tp: int) -> None:
    verdict = check(held_by_ranks(engine, tp=tp), engine, tp)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    assert check(held_by_ranks(engine, tp=tp, tied=True), engine, tp).outcome is Outcome.FAIL, "no output matrix"


def test_more_ranks_than_kv_heads_share_them() -> None:
    assert check(held_by_ranks(tp=4), tp=4).outcome is Outcome.PASS
    assert check(held_by_ranks(tp=4), tp=4, shape=replace(SHAPE, kv_heads=8)).outcome is Outcome.FAIL, "two heads each"


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_stages_of_a_pipeline_pass(tp: int, pp: int, tied: bool) -> None:
    shape, ranks = replace(SHAPE, tied=tied), held_by_ranks(tp=tp, pp=pp, tied=tied)
    verdict = check(ranks, tp=tp, pp=pp, shape=shape)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    assert len(verdict.measurements) == 1 + tp * pp + 2
    # What belongs to the first stage is on the last, and the other way round.
    swapped = [replace(rank, pp_rank=pp - 1 - rank.pp_rank) for rank in ranks]
    assert check(swapped, tp=tp, pp=pp, shape=shape).outcome is Outcome.FAIL


def test_the_histogram_of_every_rank_is_shown() -> None:
    shown = {entry.name: (entry.value, entry.spread) for entry in check(held_by_ranks()).measurements}
    matrices = 4 * (384 * 256 + 256 * 256 + 768 * 256 + 256 * 384) + 2 * 512 * 256
    each = 2 * (matrices + 9 * 256)
    for rank in (0, 1):
        assert shown[f"tp rank {rank} stored in bfloat16"] == (each, f"expected {each:,}")
    copies = 2 * 2 * 9 * 256
    assert shown["held by all ranks"] == (2 * each, f"expected {2 * each:,}: {2 * each - copies:,} dealt, {copies:,} in copies")


@pytest.mark.parametrize(
    ("engine", "name", "whole", "part"),
    [
        ("transformers", DOWN, (256, 768), (256, 384)),
        ("vllm", QKV, (768, 256), (384, 256)),
        ("sglang", DOWN, (256, 768), (256, 384)),
    ],
)
def test_a_rank_that_keeps_the_whole_of_a_weight_is_named(
    engine: str, name: str, whole: tuple[int, int], part: tuple[int, int]
) -> None:
    fields = {"shape": whole, "stored_shape": whole, "stored_bytes": 2 * whole[0] * whole[1]}
    verdict = check(changed(held_by_ranks(engine), 1, name, **fields), engine)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details == (f"tp rank 1: {name}: not sharded: the whole {list(whole)} instead of a part {list(part)}",)


@every_engine
def test_a_model_that_every_rank_holds_whole_fails(engine: Any) -> None:
    whole = held_by_ranks(engine, tp=1)[0].parameters
    verdict = check([Layout(whole, (), tp_rank=rank) for rank in range(2)], engine)
    assert verdict.outcome is Outcome.FAIL
    assert any(
        line.startswith("tp rank 0 and tp rank 1: model.layers.0.self_attn.o_proj.weight (and the same in 3")
        for line in verdict.details
    )
    assert all("not sharded" in line or "same part" in line or "more" in line for line in verdict.details)


def test_a_rank_with_one_layer_in_another_dtype_is_named() -> None:
    ranks = held_by_ranks()
    verdict = check(changed(ranks, 0, DOWN, dtype="float32", stored_bytes=4 * 256 * 384))
    assert verdict.details == (f"tp rank 0: {DOWN}: dtype float32 instead of bfloat16, stored_bytes 393,216 instead of 196,608",)
    shown = {entry.name: (entry.value, entry.spread) for entry in verdict.measurements}
    assert shown["tp rank 0 stored in float32"] == (393_216, "expected 0")
    verdict = check(changed(ranks, 1, DOWN, dtype="float16"))
    assert verdict.details == (f"tp rank 1: {DOWN}: dtype float16 instead of bfloat16",), "of the same size"


def test_a_weight_on_the_wrong_stage_is_missing_on_one_and_extra_on_the_other() -> None:
    ranks = held_by_ranks(tp=1, pp=2)
    moved = next(each for each in ranks[1].parameters if each.name == DOWN)
    first = replace(ranks[0], parameters=(*ranks[0].parameters, moved))
    second = replace(ranks[1], parameters=tuple(each for each in ranks[1].parameters if each != moved))
    assert check([first, second], tp=1, pp=2).details == (
        f"pp rank 0, tp rank 0: {DOWN}: extra: bfloat16 [256, 768], 393,216 bytes",
        f"pp rank 1, tp rank 0: {DOWN}: missing",
    )


def test_two_ranks_with_the_same_part_are_told_by_what_they_hold() -> None:
    ranks = held_by_ranks()
    verdict = check(changed(ranks, 1, DOWN, content="0"))
    assert verdict.details == (f"{DOWN}: the same part on tp rank 0 and tp rank 1: their bytes are equal",)
    assert check(changed(ranks, 1, DOWN, content="0"), random_weights=True).outcome is Outcome.PASS


def test_a_copy_that_differs_is_told_by_what_it_holds() -> None:
    verdict = check(changed(held_by_ranks(), 1, NORM, content="9"))
    assert verdict.details == (f"{NORM}: held whole by every rank, and other numbers on tp rank 0 than tp rank 1",)


def test_what_could_not_be_seen_is_reported() -> None:
    """A library of the CPU shows no bytes: the same part twice passes, and the verdict does not claim to have looked."""
    ranks = changed(changed(held_by_ranks(), 0, DOWN, content=""), 1, DOWN, content="")
    verdict = check(ranks)
    assert verdict.outcome is Outcome.PASS
    assert "equal contents of 26 of 27 weights" in verdict.smallest_detectable
    assert "of the others no bytes were seen" in verdict.smallest_detectable
    assert "equal contents of 27 of 27 weights" in check(held_by_ranks()).smallest_detectable
    assert "say nothing" in check(ranks, random_weights=True).smallest_detectable


def test_zero_biases_are_equal_by_right() -> None:
    shape, ranks = replace(SHAPE, qkv_bias=True), held_by_ranks(bias=True)
    name = "model.layers.2.self_attn.qkv_proj.bias"
    assert check(changed(ranks, 1, name, content="0"), shape=shape).outcome is Outcome.PASS
    assert check(changed(ranks, 1, QKV, content="0"), shape=shape).outcome is Outcome.FAIL, "no matrix is"


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (held_by_ranks()[:1], "pp rank 0, tp rank 1: no such rank has told what it stores"),
        (held_by_ranks(tp=4)[:3], "pp rank 0, tp rank 2: there should be no such rank"),
        ([held_by_ranks()[0]] * 2, "pp rank 0, tp rank 0: 2 ranks say that they are this one"),
        ([], "nothing was compared: the engine reported no parameters"),
    ],
)
def test_ranks_that_are_missing_or_doubled_fail(ranks: Any, said: str) -> None:
    verdict = check(ranks)
    assert verdict.outcome is Outcome.FAIL
    assert said in verdict.details


def test_a_missing_tensor_and_a_broken_tie_name_their_rank() -> None:
    shape = replace(SHAPE, tied=True)
    ranks = held_by_ranks(tied=True)
    ranks[1] = replace(ranks[1], parameters=tuple(each for each in ranks[1].parameters if each.name != DOWN), tied=())
    assert check(ranks, shape=shape).details == (
        "tp rank 1: lm_head.weight and model.embed_tokens.weight should be one tensor and are not",
        f"tp rank 1: {DOWN}: missing",
    )


def test_a_rank_on_another_device_fails() -> None:
    ranks = held_by_ranks()
    cuda = tuple(replace(each, device="cuda") for each in ranks[1].parameters)
    assert "one kind of device" in check([ranks[0], replace(ranks[1], parameters=cuda)]).details[-1]


@pytest.mark.parametrize("quantization", ["w8a8", "w4a16", "fp8", "gptq", "awq"])
def test_quantized_parts_pass_and_one_that_was_left_in_16_bits_is_named(quantization: str) -> None:
    right = packed_on_ranks(quantization)
    verdict = check(right, quantization=quantization)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    plain = [each for each in held_by_ranks()[1].parameters if each.name == DOWN]
    kept = [each for each in right[1].parameters if not each.name.startswith(DOWN.removesuffix("weight"))]
    verdict = check([right[0], replace(right[1], parameters=(*kept, *plain))], quantization=quantization)
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 1
    assert verdict.details[0].startswith(f"tp rank 1: {DOWN}: left in bfloat16 instead of {quantization} (")


def test_a_quantization_that_is_taken_and_ignored_is_named_once_for_all_ranks() -> None:
    verdict = check(held_by_ranks(), asked="int8_per_channel_weight_only")
    assert len(verdict.details) == 4
    assert verdict.details[0].startswith("tp rank 0 and tp rank 1: model.layers.0.self_attn.qkv_proj.weight (and the same in 3")


def test_what_is_not_declared_is_a_visible_skip() -> None:
    with pytest.raises(UnsupportedError, match="how vllm stores quantization 'nf4' on cpu is not known here"):
        check(held_by_ranks(), quantization="nf4")
    with pytest.raises(UnsupportedError, match="llamacpp does not split a model over tensor-parallel ranks"):
        check(held_by_ranks(), engine="llamacpp")
    with pytest.raises(UnsupportedError, match="4 layers do not divide by pp=3"):
        check(held_by_ranks(), pp=3)


def test_one_rank_is_judged_as_a_whole_model() -> None:
    (whole,) = held_by_ranks(tp=1)
    verdict = check([whole], tp=1)
    assert verdict.outcome is Outcome.PASS
    # 4 layers of 917,504 weights and two norms of 256, one norm more; both ends have 1,000 tokens, and are stored with 1,024.
    layers = 4 * (917_504 + 2 * 256) + 256
    assert verdict.key == f"{16 * (layers + 2 * 1024 * 256) / (layers + 2 * 1000 * 256):.3f} bits/weight" == "16.047 bits/weight"
    assert "pp rank 0, tp rank 1: there should be no such rank" in check([whole, *held_by_ranks()[1:]], tp=1).details


def recorded(ranks: Any) -> Any:
    return json.loads(json.dumps(summarise_ranks(ranks)))


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2)])
def test_a_recorded_layout_is_unchanged(tp: int, pp: int) -> None:
    ranks = held_by_ranks(tp=tp, pp=pp)
    record = recorded(ranks)
    assert ("ranks" in record) == (tp * pp > 1)
    verdict = check_ranks_unchanged(ranks=ranks[::-1], expected=record)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())


def test_ranks_that_are_alike_share_a_record() -> None:
    ranks = held_by_ranks()
    assert [entry["tp_ranks"] for entry in recorded(ranks)["ranks"]] == [[0, 1]]
    assert [entry["tp_ranks"] for entry in recorded(changed(ranks, 1, DOWN, dtype="float16"))["ranks"]] == [[0], [1]]
    assert Counter(entry["pp_rank"] for entry in recorded(held_by_ranks(pp=2))["ranks"]) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (changed(held_by_ranks(), 1, DOWN, dtype="float16"), f"tp rank 1: {DOWN}: dtype float16 instead of bfloat16"),
        (held_by_ranks()[:1], "pp rank 0, tp rank 1: no such rank has told what it stores"),
        (held_by_ranks(tp=1), "pp rank 0, tp rank 1: no such rank has told what it stores"),
        (held_by_ranks(pp=2), "pp rank 1, tp rank 0: there should be no such rank"),
        ([], "nothing was compared: the engine reported no parameters"),
    ],
)
def test_a_change_against_the_record_names_the_rank(now: Any, said: str) -> None:
    verdict = check_ranks_unchanged(ranks=now, expected=recorded(held_by_ranks()))
    assert verdict.outcome is Outcome.FAIL
    assert said in verdict.details


def test_several_ranks_against_the_record_of_one_fail() -> None:
    verdict = check_ranks_unchanged(ranks=held_by_ranks(), expected=recorded(held_by_ranks(tp=1)))
    assert verdict.outcome is Outcome.FAIL
