"""How a cell's quantization is asked for: what vLLM makes while it loads, and what a checkpoint must already be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.quantization_config import BITSANDBYTES, PREQUANTIZED, stored_format
from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_llminfer.spec import EngineSpec

_GGUF = ("q4_0", "q4_k_m", "q8_0")


def keywords(
    spec: EngineSpec,
    model_path: str,
    configuration: Mapping[str, Any] | None,
    *,
    methods: Collection[str],
    on_cpu: bool,
) -> dict[str, Any]:
    """Keyword arguments for vLLM. configuration: config.json, None where it is not here to be read. methods: that this build knows.

    Raises:
        BadInputError: the checkpoint is stored in another format than the cell names.
        UnsupportedError: this build, or this device, cannot do it.
    """
    wanted = spec.quantization
    stored = None if configuration is None else stored_format(configuration.get("quantization_config"))
    if wanted in _GGUF:
        return _gguf(wanted, model_path, methods)
    if wanted == "none":
        if stored is not None and stored != "none" and stored in (*BITSANDBYTES, *PREQUANTIZED):
            raise BadInputError(f"{model_path} is quantized already; name the cell for what it is: quantization={stored}")
        return {}
    if stored == wanted:
        if wanted in BITSANDBYTES:
            _need_bitsandbytes(wanted, methods, on_cpu=on_cpu)
        return {}
    if stored not in {None, "none"}:
        raise BadInputError(f"{model_path} is stored as {stored}; quantization={wanted} needs one that is not quantized otherwise")
    if wanted in BITSANDBYTES:
        return _bitsandbytes(spec, methods, on_cpu=on_cpu)
    if wanted == "fp8":
        return _fp8(methods, on_cpu=on_cpu)
    if stored is None:
        return {}
    raise BadInputError(
        f"{model_path} is not quantized, and vLLM does not quantize to {wanted} itself; give a checkpoint that is stored so"
    )


def _bitsandbytes(spec: EngineSpec, methods: Collection[str], *, on_cpu: bool) -> dict[str, Any]:
    _need_bitsandbytes(spec.quantization, methods, on_cpu=on_cpu)
    if spec.quantization != "nf4":
        raise UnsupportedError(
            f"vLLM quantizes to nf4 (with double quantization) while it loads, not to {spec.quantization}",
            f"use quantization=nf4, or a checkpoint that is stored as {spec.quantization}",
        )
    if spec.weights == "dummy":
        # EngineArgs.create_load_config puts load_format="bitsandbytes" in the place of "dummy", and finds no files.
        raise UnsupportedError(
            "vLLM quantizes with bitsandbytes what it reads from files, and weights=dummy has none",
            "write some with tools/random_checkpoint.py, and give the folder as the model",
        )
    return {"quantization": "bitsandbytes"}


def _need_bitsandbytes(wanted: str, methods: Collection[str], *, on_cpu: bool) -> None:
    if "bitsandbytes" not in methods:
        raise UnsupportedError(
            f"this vLLM has no bitsandbytes quantization, which {wanted} is",
            f"use a version that has it, or one of: {', '.join(sorted(methods))}",
        )
    if on_cpu:
        raise UnsupportedError(
            f"vLLM has bitsandbytes kernels for GPUs only, so quantization={wanted} is not possible on a CPU",
            "run it on a GPU, or use --engine=transformers",
        )


def _fp8(methods: Collection[str], *, on_cpu: bool) -> dict[str, Any]:
    if "fp8" not in methods:
        raise UnsupportedError("this vLLM has no fp8 quantization", "use a version that has it")
    if on_cpu:
        raise UnsupportedError("vLLM quantizes to fp8 while it loads on GPUs only", "on a CPU give a checkpoint with dynamic fp8")
    return {"quantization": "fp8"}


def _gguf(wanted: str, model_path: str, methods: Collection[str]) -> dict[str, Any]:
    if "gguf" not in methods:
        raise UnsupportedError(f"this vLLM reads no GGUF files, which {wanted} is", "use --engine=llamacpp")
    if not model_path.endswith(".gguf"):
        raise BadInputError(f"quantization={wanted} needs a .gguf file; {model_path} is none")
    return {"quantization": "gguf", "load_format": "gguf"}
