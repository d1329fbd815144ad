"""Which quantizations transformers loads, with which packages, and whether the checkpoint is what the cell names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.quantization_config import BITSANDBYTES, PREQUANTIZED, stored_format
from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.spec import EngineSpec

PACKAGES = {
    **dict.fromkeys(BITSANDBYTES, ("accelerate", "bitsandbytes")),
    **dict.fromkeys(("gptq", "awq"), ("accelerate", "optimum", "gptqmodel")),
    **dict.fromkeys(("w8a8", "w4a16", "fp8"), ("accelerate", "compressed_tensors")),
}
"""Quantization to what it needs beside transformers and torch, by the names of imports."""


def packages(quantization: str) -> tuple[str, ...]:
    """What has to be there for a quantization.

    Raises:
        UnsupportedError: transformers does not do it, or not here.
    """
    if quantization == "none":
        return ()
    if quantization not in PACKAGES:
        raise UnsupportedError(
            f"transformers computes with no {quantization} weights, only with: none, {', '.join(PACKAGES)}", "use --engine=llamacpp"
        )
    return PACKAGES[quantization]


def check_stored(spec: EngineSpec, model_path: str, configuration: Mapping[str, Any] | None) -> None:
    """Whether the checkpoint is stored as the cell says. configuration: the ``quantization_config`` of the model, if any.

    Raises:
        BadInputError: it is stored otherwise. UnsupportedError: dummy weights in a format that a tool has to make.
    """
    stored, wanted = stored_format(configuration), spec.quantization
    if wanted in PREQUANTIZED and spec.weights == "dummy":
        raise UnsupportedError(
            f"a tool makes {wanted} weights from real ones, and weights=dummy has none",
            f"give a checkpoint that is stored as {wanted}",
        )
    if wanted in PREQUANTIZED and stored == "none":
        raise BadInputError(
            f"{model_path} is not quantized, and transformers does not quantize to {wanted} itself; give a checkpoint that is "
            "stored so (tools/quantize.py makes one)"
        )
    if wanted in BITSANDBYTES and stored != "none":
        raise BadInputError(f"{model_path} is quantized already; quantization={wanted} needs an unquantized model")
    if stored != wanted and stored in PREQUANTIZED:
        raise BadInputError(f"{model_path} is quantized already; name the cell for what it is: quantization={stored}")
    if stored != wanted and wanted in PREQUANTIZED:
        raise BadInputError(f"{model_path} is stored as {stored}, not as {wanted}")
