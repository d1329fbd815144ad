"""What a checkpoint's ``quantization_config`` says it is, in this package's words. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BITSANDBYTES = ("int8", "nf4", "fp4")
PREQUANTIZED = ("gptq", "awq", "fp8", "w8a8", "w4a16")
"""Formats that a tool makes beforehand; an engine does not quantize to them while it loads, vLLM's fp8 aside."""


def stored_format(configuration: Mapping[str, Any] | None) -> str:
    """The format that a ``quantization_config`` declares, or the method's own name; ``none`` without one."""
    if not configuration:
        return "none"
    method = str(configuration.get("quant_method", "unknown"))
    if method == "bitsandbytes":
        if configuration.get("load_in_8bit"):
            return "int8"
        return str(configuration.get("bnb_4bit_quant_type", "fp4"))
    if method == "compressed-tensors":
        return _compressed_tensors_format(configuration)
    return method


def _compressed_tensors_format(configuration: Mapping[str, Any]) -> str:
    for group in dict(configuration.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        bits = weights.get("num_bits")
        if weights.get("type") == "float" and bits == 8:  # noqa: PLR2004 - fp8 has 8 bits
            return "fp8"
        return f"w{bits}a{inputs.get('num_bits') or 16}"
    return "compressed-tensors"


def group_size(configuration: Mapping[str, Any] | None) -> int | None:
    """Inputs that share a scale, -1 for all of a row; None where nothing is declared."""
    declared = configuration or {}
    groups = [group.get("weights") or {} for group in dict(declared.get("config_groups") or {}).values()]
    if any(weights.get("strategy") == "channel" and weights.get("num_bits") == 4 for weights in groups):  # noqa: PLR2004 - w4a16
        return -1
    said = [holder.get(key) for holder in (declared, *groups) for key in ("group_size", "q_group_size")]
    return next((int(value) for value in said if value), None)


def double_quantized(configuration: Mapping[str, Any] | None) -> bool | None:
    """Whether bitsandbytes' 4-bit scales are quantized too; None for other formats."""
    if stored_format(configuration) not in {"nf4", "fp4"}:
        return None
    return bool((configuration or {}).get("bnb_4bit_use_double_quant", False))


def variant(configuration: Mapping[str, Any] | None) -> str:
    """How a checkpoint differs from the usual variant of its format, as a phrase for a message; empty where it does not."""
    declared = configuration or {}
    name = stored_format(configuration)
    if name in {"gptq", "awq"}:
        return _packed_variant(name, declared)
    if name in BITSANDBYTES:
        return _bitsandbytes_variant(name, declared)
    if name == "fp8" and declared.get("quant_method") != "compressed-tensors":
        return "fp8 of another tool than compressed-tensors"
    found = (_scheme_variant(name, group.get("weights") or {}) for group in dict(declared.get("config_groups") or {}).values())
    return next(filter(None, found), "")


def _packed_variant(name: str, declared: Mapping[str, Any]) -> str:
    """How a checkpoint of gptq or awq differs from the usual of its format; empty where it does not."""
    bits = declared.get("bits", declared.get("w_bit", 4))
    packing = (
        declared.get("checkpoint_format", "gptq") if name == "gptq" else declared.get("format", declared.get("version", "gemm"))
    )
    usual = {"gptq", "gptq_v2"} if name == "gptq" else {"gemm"}
    found = {
        f"{name} of {bits} bits": bits != 4,  # noqa: PLR2004 - the usual
        f"{name} in the format {packing}": str(packing).lower() not in usual,
        f"{name} with a quantized output matrix": bool(declared.get("lm_head")),
        f"{name} with modules that differ (dynamic)": bool(declared.get("dynamic")),
    }
    return next((words for words, differs in found.items() if differs), "")


def _bitsandbytes_variant(name: str, declared: Mapping[str, Any]) -> str:
    """How a checkpoint of bitsandbytes differs from the usual of its format; empty where it does not."""
    storage = declared.get("bnb_4bit_quant_storage") or "uint8"
    if name != "int8" and storage != "uint8":
        return f"{name} in a storage of {storage}"
    return "int8 with weights of 16 bits beside it" if name == "int8" and declared.get("llm_int8_has_fp16_weight") else ""


def _scheme_variant(name: str, weights: Mapping[str, Any]) -> str:
    """How a scheme of compressed-tensors differs from the usual of its format; empty where it does not."""
    size = weights.get("group_size")
    # What compressed-tensors takes it for where it is not said (QuantizationArgs).
    strategy = weights.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    wanted = ("group", "channel") if name == "w4a16" else ("channel",)
    if strategy not in wanted:
        return f"{name} with a scale a {strategy} instead of a {wanted[0]}"
    if weights.get("symmetric") is False:
        return f"{name} with zero points"
    return f"{name} in another order of the inputs" if weights.get("actorder") else ""


_SKIPPED = ("ignore", "llm_int8_skip_modules", "modules_to_not_convert")
_NEVER_QUANTIZED = ("lm_head", "embed", "norm", "wte", "wpe")


def left_alone(configuration: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The modules of layers that a checkpoint declares to have left in 16 bits: beside embeddings, norms and the output matrix."""
    declared = configuration or {}
    named = [str(module) for key in _SKIPPED for module in declared.get(key) or ()]
    return tuple(module for module in named if not any(part in module for part in _NEVER_QUANTIZED))
