"""From a cell and ``engine_args`` to the keyword arguments of ``LLM``: nothing is passed that the installed vLLM does not name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.vllm import quantization

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Self

    from pytest_llminfer.spec import EngineSpec

EXTENSION = "llminfer_vllm_extension.RankExtension"
FORCED_TOKENS = "llminfer_vllm_extension:ForcedTokens"
DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_CELL = {
    "model": "model",
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "data_parallel_size": "dp",
}
_OURS = ("worker_extension_cls", "skip_tokenizer_init")
OWN = ("score_by_decode",)
_CPU_POOL_BYTES = 1 << 30
_POOL = ("kv_cache_memory_bytes", "gpu_memory_utilization")


@dataclass(frozen=True, slots=True)
class Installed:
    """What the installed vLLM accepts.

    Attributes:
        fields: Names of engine arguments.
        cache_dtypes: dtypes of the KV cache, in vLLM's words.
        methods: Names of quantization methods.
        on_cpu: Whether it runs on the processor.
    """

    fields: frozenset[str]
    cache_dtypes: frozenset[str]
    methods: frozenset[str]
    on_cpu: bool


@dataclass(frozen=True, slots=True)
class Arguments:
    """``engine_args``, sorted by who reads them.

    Attributes:
        score_by_decode: Whether a logits processor is installed that can force tokens, for the cache path ``decode`` of ``score``;
            None leaves the choice to the backend.
        engine: Keyword arguments of ``LLM``.
    """

    score_by_decode: bool | None
    engine: dict[str, Any]

    @classmethod
    def read(cls, engine_args: Mapping[str, Any], known: Collection[str]) -> Self:
        """Refuse names that nothing would read, with the closest one that exists, and those that the cell decides.

        Raises:
            BadInputError: an unknown name, one that the cell or this backend sets, or a value of another kind.
        """
        for name in engine_args:
            if name in _CELL:
                raise BadInputError(f"the engine argument {name!r} is the cell's to choose: use {_CELL[name]}")
            if name in _OURS:
                raise BadInputError(f"the engine argument {name!r} is set by this backend and cannot be chosen")
            if name not in known and name not in OWN:
                close = difflib.get_close_matches(name, [*known, *OWN], n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise BadInputError(f"unknown engine argument {name!r} for the installed vllm.{hint}")
        given = dict(engine_args)
        choice = given.pop("score_by_decode", None)
        if choice is not None and not isinstance(choice, bool):
            raise BadInputError(f"score_by_decode must be true or false, not {choice!r}")
        return cls(score_by_decode=choice, engine=given)


def build(
    spec: EngineSpec, model_path: str, arguments: Arguments, installed: Installed, configuration: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Keyword arguments of ``LLM``: the cell's, then the backend's where the user chose nothing. configuration: config.json.

    Raises:
        BadInputError: the cell and ``engine_args`` both choose one thing. UnsupportedError: the installed vLLM cannot do it.
    """
    if spec.dp > 1:
        raise UnsupportedError(
            "vLLM's own data parallelism is for its server, not for offline use", "use replication=workers, or serve the cell"
        )
    cell = {
        "model": model_path,
        **({"dtype": DTYPES[spec.dtype]} if spec.dtype != "auto" else {}),
        **({"tensor_parallel_size": spec.tp} if spec.tp > 1 else {}),
        **({"pipeline_parallel_size": spec.pp} if spec.pp > 1 else {}),
        **({"load_format": "dummy"} if spec.weights == "dummy" else {}),
        **_cache_dtype(spec, installed),
        **quantization.keywords(spec, model_path, configuration, methods=installed.methods, on_cpu=installed.on_cpu),
    }
    for name in arguments.engine:
        if name in cell:
            raise BadInputError(f"the cell {spec} chooses {name}={cell[name]!r} already; leave it out of engine_args")
    chosen = {**_neutral(installed, arguments.engine), **arguments.engine, **cell}
    missing = sorted(name for name in cell if name not in installed.fields)
    if missing:
        raise UnsupportedError(
            f"the installed vllm has no engine argument {', '.join(missing)}, which the cell {spec} needs",
            "use a version of vLLM that has it, or a cell without",
        )
    return chosen


def _neutral(installed: Installed, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of this backend, of those that the installed vLLM knows."""
    wanted: dict[str, Any] = {
        "seed": 0,
        "skip_tokenizer_init": True,
        # The model's generation_config would set sampling defaults.
        "generation_config": "vllm",
        "worker_extension_cls": EXTENSION,
    }
    if installed.on_cpu:
        wanted["enforce_eager"] = True
        if not any(name in given for name in _POOL):
            wanted["kv_cache_memory_bytes"] = _CPU_POOL_BYTES
    return {name: value for name, value in wanted.items() if name in installed.fields}


def _cache_dtype(spec: EngineSpec, installed: Installed) -> dict[str, Any]:
    if spec.kv_dtype in {"auto", spec.dtype}:
        return {}
    name = DTYPES.get(spec.kv_dtype, spec.kv_dtype)
    if name not in installed.cache_dtypes:
        raise UnsupportedError(
            f"the installed vllm has no KV cache of {spec.kv_dtype}", f"use one of: {', '.join(sorted(installed.cache_dtypes))}"
        )
    return {"kv_cache_dtype": name}
