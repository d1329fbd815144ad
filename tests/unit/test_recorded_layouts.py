"""Layouts that were recorded from engines on GPUs, against the declarations: these need no GPU to be judged again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_llminfer.checks.layout import check_layout
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations import Parameter
from pytest_llminfer.verdict import Outcome

BASELINES = Path(__file__).resolve().parents[2] / "baselines" / "any"
ASKED = {"fp8": "fp8"}


def recorded(shape: str, entry: str) -> list[Parameter]:
    """The parameters of a recorded layout, one for each layer."""
    expected = json.loads((BASELINES / f"{shape}-dummy" / "dtype_layout.json").read_text())["entries"][entry]["expected"]
    found = []
    for name, groups in expected.items():
        for group in groups:
            facts = {key: tuple(value) if isinstance(value, list) else value for key, value in group.items() if key != "layers"}
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
        engine="vllm",
        asked=ASKED.get(quantization, ""),
    ).outcome


@pytest.mark.parametrize("quantization", ["none", "fp8"])
@pytest.mark.parametrize("shape", ["llama-3-8b", "qwen2.5-7b"])
def test_what_vllm_held_on_a_gpu_is_what_is_declared(shape: str, quantization: str) -> None:
    parameters = recorded(shape, f"vllm-{quantization}-bf16-kv_bf16")
    assert judged(shape, quantization, parameters) is Outcome.PASS
    # A layer less, and a format for another: the declaration is one that can be broken.
    assert judged(shape, quantization, parameters[:-2]) is Outcome.FAIL
    assert judged(shape, "fp8" if quantization == "none" else "none", parameters) is Outcome.FAIL
