from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.layout.check import check_layout, check_layout_unchanged, summarise_layout
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.verdict import Outcome, Verdict, first_offenders
from tests.support.held_layouts import SHAPE, held, held_fused

TIED = [["model.embed_tokens.weight", "lm_head.weight"]]
UP = "model.layers.3.mlp.up_proj.weight"


def check(
    parameters: Any,
    quantization: Any = "nf4",
    shape: ModelShape = SHAPE,
    tied: list[Any] = TIED,
    engine: Any = "transformers",
    **options: Any,
) -> Verdict:
    of = {"shape": shape, "dtype": "bfloat16", "quantization": quantization, "tied": tied, "engine": profile(engine)}
    return check_layout(parameters=parameters, **of, **options)


def changed(parameters: Any, name: str, **fields: Any) -> list[Any]:
    return [replace(parameter, **fields) if parameter.name == name else parameter for parameter in parameters]


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", "fp4"])
def test_the_right_layout_passes(quantization: str) -> None:
    verdict = check(held(quantization), quantization)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    assert verdict.smallest_detectable == "exact"


@pytest.mark.parametrize(("quantization", "bits"), [("none", 16.0), ("int8", 8.6), ("fp4", 4.75)])
def test_the_bits_of_a_weight_are_shown(quantization: str, bits: float) -> None:
    verdict = check(held(quantization), quantization)
    assert float(verdict.key.split()[0]) == pytest.approx(bits, rel=0.02)


def test_the_histogram_adds_up() -> None:
    parameters = held("int8")
    stored = {entry.name: entry for entry in check(parameters, "int8").measurements if entry.name.startswith("stored in")}
    # 12 layers of 30,720 weights in 512 rows; 25 norms of 64 and an embedding of 50 x 64.
    assert {name: entry.value for name, entry in stored.items()} == {
        "stored in bfloat16": 2 * (25 * 64 + 50 * 64),
        "stored in float32": 4 * 12 * (64 + 32 + 32 + 64 + 96 + 96 + 64),
        "stored in int8": 12 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64),
    }
    assert [entry.spread for entry in stored.values()] == [f"expected {entry.value:,}" for entry in stored.values()]
    assert sum(int(entry.value) for entry in stored.values()) == sum(parameter.stored_bytes for parameter in parameters)


def test_state_in_another_dtype_of_the_same_size_fails() -> None:
    verdict = check(
        changed(held("nf4"), UP, state=(("uint8", 96), ("float32", 64), ("float32", 4), ("int32", 4), ("float32", 1024)))
    )
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0].startswith(f"{UP}: state in ")


def test_a_quantization_that_an_engine_takes_and_ignores_fails_and_names_every_linear() -> None:
    parameters = held_fused()
    of: dict[str, Any] = {"quantization": "none", "engine": "vllm"}
    assert check(parameters, **of).outcome is Outcome.PASS
    verdict = check(parameters, **of, asked="int8_per_channel_weight_only")
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 4
    assert verdict.details[0].startswith("model.layers.0.self_attn.qkv_proj.weight (and the same in 11 other layers): left in")
    assert "asked for int8_per_channel_weight_only" in verdict.details[0]


@pytest.mark.parametrize("asked", ["int8", "nf4", "fp4"])
def test_a_quantization_that_was_ignored_fails(asked: str) -> None:
    verdict = check(held("none"), asked)
    assert verdict.outcome is Outcome.FAIL
    assert (
        "model.layers.0.self_attn.q_proj.weight (and the same in 11 other layers): dtype bfloat16 instead of" in verdict.details[0]
    )


def test_another_quantization_than_asked_for_fails() -> None:
    verdict = check(held("fp4, quantized scales"), "nf4")
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0].endswith("packing fp4 instead of nf4")


def test_single_instead_of_double_quantization_fails() -> None:
    verdict = check(held("nf4, plain scales"))
    assert verdict.details[0].endswith("double_quantized False instead of True")
    assert check(held("nf4, plain scales"), double_quantized=False).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float32"}, "dtype float32 instead of uint8"),
        ({"shape": (64, 96)}, "shape [64, 96] instead of [96, 64]"),
        ({"stored_shape": (3072,)}, "stored_shape [3072] instead of [3072, 1]"),
        ({"stored_bytes": 5000}, "stored_bytes 5,000 instead of "),
        ({"state_bytes": 7}, "state_bytes 7 instead of "),
        ({"block_size": 128}, "block_size 128 instead of 64"),
        ({"packing": ""}, "packing none instead of nf4"),
    ],
)
def test_one_wrong_tensor_is_named(fields: dict[str, Any], said: str) -> None:
    verdict = check(changed(held("nf4"), UP, **fields))
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 1
    assert verdict.details[0].startswith(f"{UP}: {said}")


def test_a_missing_tensor_is_named() -> None:
    verdict = check([parameter for parameter in held("nf4") if parameter.name != UP])
    assert (verdict.outcome, verdict.details) == (Outcome.FAIL, (f"{UP}: missing",))


def test_an_extra_tensor_is_named() -> None:
    extra = Parameter("model.layers.0.mlp.gate.weight", "float32", (8, 64), (8, 64), 2048)
    verdict = check([*held("nf4"), extra])
    assert verdict.details == ("model.layers.0.mlp.gate.weight: extra: float32 [8, 64], 2,048 bytes",)


def test_a_tensor_reported_twice_is_named() -> None:
    verdict = check([*held("nf4"), next(parameter for parameter in held("nf4") if parameter.name == UP)])
    assert verdict.details == (f"{UP}: reported 2 times",)


def test_a_broken_tie_fails_even_if_the_copy_is_not_listed() -> None:
    verdict = check(held("nf4"), tied=[])
    assert verdict.details == ("lm_head.weight and model.embed_tokens.weight should be one tensor and are not",)


def test_an_output_matrix_of_its_own_fails_where_it_should_be_tied() -> None:
    verdict = check(held("nf4", tied=False), tied=[])
    assert any(line.startswith("lm_head.weight: extra") for line in verdict.details)


def test_a_tie_that_should_not_be_fails() -> None:
    untied = replace(SHAPE, tied=False)
    assert check(held("nf4", tied=False), shape=untied, tied=[]).outcome is Outcome.PASS
    assert check(held("nf4", tied=False), shape=untied).details[-1].endswith("are one tensor and should not be")


@pytest.mark.parametrize("devices", [("cuda:0", "cpu"), ("meta", "meta"), ("cuda:0", "meta")])
def test_offloaded_weights_fail(devices: tuple[str, str]) -> None:
    parameters = held("nf4")
    parameters = [replace(parameter, device=devices[index % 2]) for index, parameter in enumerate(parameters)]
    verdict = check(parameters)
    assert verdict.outcome is Outcome.FAIL
    assert "one kind of device" in verdict.details[-1]


def test_two_devices_of_one_kind_are_fine() -> None:
    parameters = [replace(parameter, device=f"cuda:{index % 2}") for index, parameter in enumerate(held("nf4"))]
    assert check(parameters).outcome is Outcome.PASS


def test_no_parameters_is_a_failure() -> None:
    assert check([]).outcome is Outcome.FAIL
    assert check_layout_unchanged(parameters=[], expected={}).outcome is Outcome.FAIL
    assert "nothing was compared" in str(check([]))


def recorded(parameters: Any) -> Any:
    return json.loads(json.dumps(summarise_layout(parameters)))


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_recorded_layout_is_unchanged(quantization: str) -> None:
    parameters = held(quantization)
    verdict = check_layout_unchanged(parameters=parameters[::-1], expected=recorded(parameters))
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())


def test_the_record_has_one_entry_for_layers_that_are_alike() -> None:
    record = recorded(changed(held("nf4"), UP, dtype="float32"))
    assert len(record) == 11
    entries = record["model.layers.*.mlp.up_proj.weight"]
    assert [entry["layers"] for entry in entries] == [[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11], [3]]
    assert "layers" not in record["model.norm.weight"][0]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (lambda parameters: changed(parameters, UP, dtype="float32"), f"{UP}: dtype float32 instead of uint8"),
        (lambda parameters: changed(parameters, UP, double_quantized=False), f"{UP}: double_quantized False instead of True"),
        (lambda parameters: [entry for entry in parameters if entry.name != UP], f"{UP}: missing"),
        (lambda parameters: [*parameters, replace(parameters[0], name="new")], "new: extra: bfloat16 [50, 64], 6,400 bytes"),
    ],
)
def test_a_change_against_the_record_is_named(now: Callable[..., Any], said: str) -> None:
    parameters = held("nf4")
    verdict = check_layout_unchanged(parameters=now(parameters), expected=recorded(parameters))
    assert (verdict.outcome, verdict.details) == (Outcome.FAIL, (said,))


def test_long_lists_are_counted() -> None:
    assert first_offenders(["a"] * 8) == ("a",) * 8
    assert first_offenders([str(number) for number in range(20)])[-1] == "and 12 more"
