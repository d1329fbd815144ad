"""What ``engine_args`` may hold for this engine, looked up in the installed ``llama_cpp.Llama``."""

from __future__ import annotations

import difflib
import inspect
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf import GGML_TYPES
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.host import available_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.spec import EngineSpec

KV_TYPES = {"fp32": 0, "fp16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""A cell's KV dtype to ggml's number of the type."""
DEFAULT_KV_DTYPE = "fp16"
"""Of the library and of its server, whatever the weights are."""

OWN = ("n_seq_max",)
_FIXED = ("model_path", "seed", "verbose", "logits_all", "embedding", "vocab_only")
_CELLS = 4096
_SEQUENCES = 16


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``Llama`` is given, and how many sequences are decoded at once.

    Attributes:
        keywords: Keyword arguments of ``Llama``; ``type_k`` and ``type_v`` are ggml's numbers of a type.
        sequences: How many sequences share the KV cache at once.
    """

    keywords: dict[str, Any]
    sequences: int

    @classmethod
    def read(cls, engine_args: Mapping[str, Any], llama: Any, spec: EngineSpec, *, offload: bool) -> Arguments:
        """Refuse names that nothing would read, with the closest one that exists. offload: whether the build can use a GPU.

        Beside the keywords of ``Llama``: ``n_seq_max``, how many sequences share the KV cache at once (16).
        ``n_ctx`` is the size of that cache in tokens (4096), and bounds each sequence as well.

        Raises:
            BadInputError: an unknown name, one that the cell sets, a size below 1, or values that contradict each other.
            UnsupportedError: a KV dtype that llama.cpp does not have, or offloading by a build without GPU support.
        """
        parameters = inspect.signature(llama.__init__).parameters
        known = [name for name, entry in parameters.items() if entry.kind is entry.KEYWORD_ONLY and name not in _FIXED]
        for name in engine_args:
            _check_known(name, [*known, *OWN])
        keywords = {name: value for name, value in engine_args.items() if name not in OWN}
        check_offload(keywords.get("n_gpu_layers"), offload=offload)
        sequences, cells = engine_args.get("n_seq_max", _SEQUENCES), keywords.get("n_ctx", _CELLS)
        for name, value in (("n_seq_max", sequences), ("n_ctx", cells)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInputError(f"{name} must be a whole number of at least 1, not {value!r}")
        key, value = (_kv_type(keywords, name, spec) for name in ("type_k", "type_v"))
        threads = keywords.get("n_threads") or default_threads()
        defaults: dict[str, Any] = {
            "n_ctx": cells,
            "n_threads": threads,
            "n_threads_batch": threads,
            "n_gpu_layers": -1 if offload else 0,
            # Weights in memory of the process itself, so that what is measured is what they take.
            "use_mmap": False,
            "flash_attn": _is_quantized(value),
        }
        if keywords.get("flash_attn") is False and _is_quantized(value):
            raise BadInputError("a quantized V cache needs flash_attn=True: leave it out, or choose another type_v")
        fixed = {"type_k": key, "type_v": value, "seed": 0, "verbose": False, "logits_all": False}
        return cls({**defaults, **keywords, **fixed}, sequences)


def default_threads() -> int:
    """As many as OMP_NUM_THREADS says, otherwise all cores but one: more than there are free slow each other down."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else max(available_cores() - 1, 1)


def _check_known(name: str, known: list[str]) -> None:
    if name in _FIXED:
        raise BadInputError(f"the engine argument {name!r} of llamacpp is set by the cell and cannot be given")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInputError(f"unknown engine argument {name!r} for llamacpp; valid: {', '.join(sorted(known))}.{hint}")


def check_offload(layers: int | None, *, offload: bool) -> None:
    """Refuse layers on a GPU where the build has no use for one.

    Raises:
        UnsupportedError: ``layers`` are to be offloaded by a build without GPU support.
    """
    if layers and not offload:
        raise UnsupportedError(
            f"n_gpu_layers={layers} needs a build of llama-cpp-python with GPU support, which this one is not: it would be ignored "
            "without a word",
            "install one with it, or leave n_gpu_layers out",
        )


def _kv_type(keywords: Mapping[str, Any], name: str, spec: EngineSpec) -> int:
    """The type of keys or values: the cell's, or that of an engine argument, by name or by ggml's number."""
    if spec.kv_dtype not in {"auto", *KV_TYPES}:
        raise UnsupportedError(f"llama.cpp has no KV cache of dtype {spec.kv_dtype}", f"use one of: {', '.join(KV_TYPES)}")
    said = keywords.get(name)
    if said is None:
        return KV_TYPES.get(spec.kv_dtype, KV_TYPES[DEFAULT_KV_DTYPE])
    number = KV_TYPES.get(said) if isinstance(said, str) else said
    if number not in GGML_TYPES:
        raise BadInputError(f"unknown {name} {said!r}; valid: {', '.join(KV_TYPES)}, or ggml's number of a type")
    if spec.kv_dtype != "auto" and number != KV_TYPES[spec.kv_dtype]:
        raise BadInputError(f"{name}={said!r} contradicts the cell's kv_dtype={spec.kv_dtype}: give one of them")
    return int(number)


def _is_quantized(kind: int) -> bool:
    return GGML_TYPES[kind][1] > 1
