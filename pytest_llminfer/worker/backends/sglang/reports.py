"""Answers put together from those of the ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineError, OutOfMemoryError
from pytest_llminfer.worker.backends.sglang.processes import process_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SPEC_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8_e5m2"}


def spec_dtype(name: str) -> str:
    """A cell's word for a dtype of torch."""
    return _SPEC_DTYPES.get(name, name)


def end_token_ids(model_path: str, configuration: Mapping[str, Any]) -> list[int]:
    """What generation_config.json says, otherwise config.json."""
    file = Path(model_path) / "generation_config.json"
    defaults = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for holder in (defaults, configuration, configuration.get("text_config") or {}):
        ids = holder.get("eos_token_id")
        if ids is not None:
            return sorted({int(token) for token in (ids if isinstance(ids, list) else [ids])})
    return []


def driver() -> dict[str, str]:
    """The kernel driver's version, where there is one."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return {}
    found = next((word for word in words if word[:1].isdigit() and "." in word), None)
    return {"driver": found} if found else {}


def ranks(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fields of ``Rank``, by data, pipeline and tensor rank; SGLang names its processes for them."""
    entries = [{**answer, "name": process_name(answer["pid"])} for answer in answers]
    return sorted(entries, key=lambda entry: (entry["dp_rank"], entry["pp_rank"], entry["tp_rank"]))


def layout(placed: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one replica holds: the model, or the part of each of its ranks."""
    own = [
        {**answer, "tp_rank": place["tp_rank"], "pp_rank": place["pp_rank"]}
        for place, answer in zip(placed, answers, strict=True)
        if place["dp_rank"] == 0
    ]
    return {"ranks": own} if len(own) > 1 else own[0]


def memory(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every number of the rank with the most."""
    return {
        name: max(answer[name] for answer in answers) if isinstance(value, int) else value for name, value in answers[0].items()
    }


def check_pool(asked: int | None, pool: Mapping[str, Any]) -> None:
    """Refuse a pool that is smaller than the user asked for: SGLang takes what fits, and does not say so.

    Raises:
        OutOfMemoryError: with both numbers.
    """
    if asked is not None and pool["capacity_tokens"] + pool["block_size"] <= asked:
        raise OutOfMemoryError(
            f"out of memory while sglang was starting: max_total_tokens={asked} was asked for, and there is memory for a pool of "
            f"{pool['capacity_tokens']}; ask for less, or raise mem_fraction_static"
        )


def kv_pool(placed: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], max_model_len: int) -> dict[str, Any]:
    """Fields of ``KVPool``: bytes over all ranks of one replica, tokens as each of them counts.

    A block is a page; the first one is SGLang's own, for writes that are never read, and is not part of the capacity.

    Raises:
        EngineError: the ranks of a replica disagree about the pool.
    """
    own = [answer for place, answer in zip(placed, answers, strict=True) if place["dp_rank"] == 0]
    shapes = {(answer["tokens"], answer["slots"], answer["page_size"], answer["dtype"]) for answer in own}
    if len(shapes) != 1:
        raise EngineError(f"the ranks of one replica have different pools: {sorted(shapes)}")
    ((tokens, _, page_size, dtype),) = shapes
    return {
        "num_blocks": tokens // page_size,
        "block_size": page_size,
        "capacity_tokens": tokens // page_size * page_size,
        "dtype": dtype,
        "stored_bytes": sum(answer["stored_bytes"] for answer in own),
        "bytes_per_token": sum(round(answer["stored_bytes"] / answer["slots"]) for answer in own),
        "max_model_len": max_model_len,
    }
