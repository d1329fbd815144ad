"""What ``sglang.Engine`` is given: the cell in its words, the user's arguments as they are, and what a CPU needs."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_llminfer.spec import EngineSpec

SEED = 0
_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
_CHECKPOINTS = {
    "gptq": ("gptq",),
    "awq": ("awq",),
    "w8a8": ("compressed-tensors", "w8a8_int8"),
    "w4a16": ("compressed-tensors",),
}
"""Quantizations that a checkpoint brings along: what its configuration may call them."""

_FROM_THE_CELL = (
    "model_path",
    "dtype",
    "tp_size",
    "pp_size",
    "dp_size",
    "kv_cache_dtype",
    "quantization",
    "device",
    "skip_tokenizer_init",
)

CPU_DEFAULTS: dict[str, Any] = {
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_overlap_schedule": True,
    "disable_cuda_graph": True,
    "sleep_on_idle": True,  # an idle scheduler would keep a core busy
    "mem_fraction_static": 0.2,
    "max_total_tokens": 16384,
}
"""What SGLang needs on a processor without its own kernels, and a pool that leaves the machine room."""


def engine_arguments(
    spec: EngineSpec,
    model_path: str,
    engine_args: Mapping[str, Any],
    *,
    known: Collection[str],
    on_cpu: bool,
    has_cpu_kernels: bool = True,
    quant_method: str = "",
    positions: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of ``Engine``.

    known: the fields of the installed ``ServerArgs``; defaults of this backend that it lacks are left out. has_cpu_kernels: whether
    SGLang has kernels of its own for this processor; without them it loads quantized weights, or fails to, and computes with none.
    quant_method: what the checkpoint's configuration says of its quantization. positions: how long a sequence may be.

    Raises:
        BadInputError: an argument that the installed SGLang does not know, or that the cell decides; a checkpoint that is not
            quantized as the cell says.
        UnsupportedError: a quantization or cache dtype that SGLang does not have.
    """
    _check_names(engine_args, known)
    quantization = _quantization(spec, quant_method, model_path)
    if on_cpu and not has_cpu_kernels and spec.quantization != "none":
        raise UnsupportedError(
            f"sglang has no kernels for {spec.quantization} weights on this processor: they are for GPUs, AMX and ARM",
            "vllm runs gptq, awq, w8a8, w4a16 and fp8 checkpoints here",
        )
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "skip_tokenizer_init": True,
        "dtype": _DTYPES[spec.dtype],
        "tp_size": spec.tp,
        "pp_size": spec.pp,
        "dp_size": spec.dp,
        "random_seed": SEED,
        "log_level": "error",
        **_kv_cache(spec),
        **quantization,
    }
    if spec.weights == "dummy":
        arguments["load_format"] = "dummy"
    if on_cpu:
        arguments |= {"device": "cpu", **{name: value for name, value in CPU_DEFAULTS.items() if name in known}}
        if "max_total_tokens" in arguments:
            arguments["max_total_tokens"] = max(arguments["max_total_tokens"], positions)
    return {**arguments, **engine_args}


def core_bindings(cores: list[int], ranks: int) -> str:
    """``SGLANG_CPU_OMP_THREADS_BIND``: equal shares of the usable cores, one a rank: ``0,1|2,3``. Without enough, they share."""
    if len(cores) < ranks:
        return "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    share = len(cores) // ranks
    return "|".join(",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks))


def _check_names(engine_args: Mapping[str, Any], known: Collection[str]) -> None:
    for name in engine_args:
        if name in _FROM_THE_CELL:
            raise BadInputError(
                f"{name!r} is no engine argument here: the cell says it (see --dtype, --kv-dtype, --tp, --pp, --dp)"
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise BadInputError(f"unknown engine argument {name!r} for the installed sglang; see its ServerArgs.{hint}")


def _kv_cache(spec: EngineSpec) -> dict[str, Any]:
    if spec.kv_dtype == "auto":
        return {}
    if spec.kv_dtype == spec.dtype:
        return {"kv_cache_dtype": "auto"}
    if spec.kv_dtype not in _KV_DTYPES:
        raise UnsupportedError(
            f"sglang keeps no cache in {spec.kv_dtype} with weights in {spec.dtype}", f"use kv_dtype=auto, {', '.join(_KV_DTYPES)}"
        )
    return {"kv_cache_dtype": _KV_DTYPES[spec.kv_dtype]}


def _quantization(spec: EngineSpec, quant_method: str, model_path: str) -> dict[str, Any]:
    wanted = spec.quantization
    if wanted == "none":
        if quant_method:
            raise BadInputError(f"{model_path} is quantized ({quant_method}), but the cell says none; name the quantization")
        return {}
    if wanted in _CHECKPOINTS:
        if quant_method not in _CHECKPOINTS[wanted]:
            raise BadInputError(
                f"{wanted} is a property of the checkpoint, and {model_path} is "
                f"{f'quantized with {quant_method}' if quant_method else 'not quantized'}; give one that is {wanted}"
            )
        return {}
    if wanted == "fp8":
        # A checkpoint that is not quantized is, while it loads; any other says itself what it is.
        return {} if quant_method else {"quantization": "fp8"}
    if wanted == "nf4":
        return {"quantization": "bitsandbytes", **({} if spec.weights == "dummy" else {"load_format": "bitsandbytes"})}
    raise UnsupportedError(
        f"sglang cannot load {wanted}",
        "of bitsandbytes it quantizes nf4 only, and of GGUF nothing by itself: use quantization=nf4, or another engine",
    )
