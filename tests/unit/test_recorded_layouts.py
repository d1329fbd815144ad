"""Layouts that were recorded from engines on GPUs, against the declarations: these need no GPU to be judged again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.layout.check import check_layout
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.verdict import Outcome
from tests.support.paths import REPOSITORY

BASELINES = REPOSITORY / "baselines"
ASKED = {"fp8": "fp8"}


def recorded(model: str, quantization: str, *, engine: str = "vllm") -> list[Parameter]:
    """The parameters of a recorded layout, one for each layer."""
    hardware = "any" if quantization == "none" else "nvidia-h200-x1"
    entries = json.loads((BASELINES / hardware / model / "dtype_layout.json").read_text())["entries"]
    expected = entries[f"{engine}-{quantization}-auto-kv_auto"]["expected"]
    found = []
    for name, groups in expected.items():
        for group in groups:
            facts: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in group.items() if key != "layers"
            }
            names = [name.replace("*", str(layer)) for layer in group["layers"]] if "layers" in group else [name]
            found += [Parameter(name=each, device="cuda", **facts) for each in names]
    return found


def judged(shape: str, quantization: str, parameters: list[Parameter]) -> Outcome:
    return check_layout(
        parameters=parameters,
        shape=Model(shape, weights="dummy").shape,
        dtype="bf16",
        quantization=quantization,
        tied=(),
        engine=profile("vllm"),
        asked=ASKED.get(quantization, ""),
    ).outcome


@pytest.mark.parametrize("quantization", ["none", "fp8"])
@pytest.mark.parametrize("shape", ["llama-3-8b", "qwen2.5-7b"])
def test_what_vllm_held_on_a_gpu_is_what_is_declared(shape: str, quantization: str) -> None:
    parameters = recorded(f"{shape}-dummy", quantization)
    assert judged(shape, quantization, parameters) is Outcome.PASS
    # A layer less, and a format for another: the declaration is one that can be broken.
    assert judged(shape, quantization, parameters[:-2]) is Outcome.FAIL
    assert judged(shape, "fp8" if quantization == "none" else "none", parameters) is Outcome.FAIL


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("quantization", ["gptq", "awq", "w4a16", "w8a8", "fp8"])
def test_what_an_engine_made_of_a_checkpoint_on_a_gpu_is_what_is_declared(quantization: str, engine: str) -> None:
    parameters = recorded(quantization, quantization, engine=engine)

    def outcome(found: list[Parameter], quantization: str = quantization) -> Outcome:
        shape = Model(str(REPOSITORY / "assets" / quantization)).shape
        asked = "compressed-tensors" if quantization in ("w4a16", "w8a8", "fp8") and engine == "vllm" else ""
        facts: dict[str, Any] = {
            "shape": shape,
            "dtype": "bf16",
            "quantization": quantization,
            "tied": (),
            "engine": profile(engine),
            "asked": asked,
        }
        return check_layout(parameters=found, **facts).outcome

    assert outcome(parameters) is Outcome.PASS
    scale = next(each for each in parameters if "scale" in each.name)
    assert outcome([each for each in parameters if each is not scale]) is Outcome.FAIL
    assert outcome([replace(each, dtype="float16") if each is scale else each for each in parameters]) is Outcome.FAIL
    assert outcome(parameters, "gptq" if quantization == "awq" else "awq") is Outcome.FAIL
