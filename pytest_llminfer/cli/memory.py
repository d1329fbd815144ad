"""``llminfer memory``: what will fit on a GPU, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.cli.console import Parser, say, table
from pytest_llminfer.errors import BadInputError, InvalidSpecError
from pytest_llminfer.memory_model.budget import UTILIZATION
from pytest_llminfer.memory_model.formats import GROUP, FormatOptions
from pytest_llminfer.memory_model.gpus import GPUS, Gpu, find_gpu
from pytest_llminfer.memory_model.kv import BITS
from pytest_llminfer.memory_model.plan import Deployment, Known, MemoryPlan, plan_memory
from pytest_llminfer.memory_model.weights import FORMATS
from pytest_llminfer.models.files import SHAPES
from pytest_llminfer.models.gguf import config_from_gguf, read_gguf
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.shape import TORCH_DTYPES
from pytest_llminfer.models.stored import group_size, stored_format
from pytest_llminfer.spec import REFERENCE_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GIB = 2**30
_WORDS = {name: word for word, name in TORCH_DTYPES.items()}
_ALIKE = {"w8a16": "w8a8", "w4a8": "w4a16"}
"""Formats whose weights take as much as another's: only activations differ."""
_PLAIN = {"f32": "none", "f16": "none", "bf16": "none"}


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer memory`` with these arguments: status 0 if a sequence of that length fits, 1 if none does."""
    given = _parser().parse_args(argv)
    gpu = find_gpu(given.gpu)
    config, file_bytes, found = _read(given.model)
    quantization = given.quantization or found["quantization"]
    if quantization not in FORMATS:
        raise InvalidSpecError("quantization", quantization, FORMATS)
    if file_bytes is not None and quantization != found["quantization"]:
        raise BadInputError(f"{given.model} is stored as {found['quantization']}, not {quantization}; leave --quantization out")
    engine = given.engine or ("llamacpp" if file_bytes is not None else "vllm")
    deployment = Deployment(
        engine=engine,
        dtype=given.dtype or found["dtype"],
        quantization=quantization,
        kv_dtype=given.kv_dtype,
        tp=given.tp,
        pp=given.pp,
        options=FormatOptions(group_size=given.group_size or found["group_size"]),
    )
    known = Known(weights=file_bytes, activation_peak=_mib(given.activation_mib), non_torch=_mib(given.non_torch_mib))
    plan = plan_memory(config, deployment, total=gpu.total, context=given.context, utilization=given.utilization, known=known)
    cell = {"model": given.model, "engine": engine, "quantization": quantization, "tp": given.tp, "pp": given.pp}
    say([json.dumps({**cell, **_plain(plan, gpu)}, indent=2)] if given.json else _lines(plan, gpu, cell))
    return 0 if plan.fits else 1


def _parser() -> Parser:
    parser = Parser(
        prog="llminfer memory",
        description="What will fit on a GPU, from the model's configuration alone: weights, tokens of the KV cache, sequences at "
        "once. Status 0: one sequence of that length fits; 1: none does.",
    )
    parser.add_argument("model", metavar="MODEL", help="a bundled shape, a folder with config.json, a .gguf file, or a hub id")
    parser.add_argument("--gpu", default="H100 80GB", metavar="NAME", help=f"of {', '.join(gpu.name for gpu in GPUS)}")
    parser.add_argument("--engine", choices=sorted(UTILIZATION), help="whose accounting (default: vllm; llamacpp for a GGUF file)")
    parser.add_argument("--quantization", metavar="FORMAT", help=f"of {', '.join(FORMATS)} (default: what the model says)")
    parser.add_argument("--group-size", type=_positive, metavar="N", help=f"of gptq, awq, w4a16 (default: the model's, or {GROUP})")
    parser.add_argument("--dtype", choices=sorted(TORCH_DTYPES), help="of what is not quantized (default: what the model says)")
    parser.add_argument("--kv-dtype", choices=["auto", *BITS], default="auto", help="of keys and values (default: the dtype)")
    parser.add_argument("--tp", type=_positive, default=1, metavar="N", help="tensor-parallel ranks")
    parser.add_argument("--pp", type=_positive, default=1, metavar="N", help="pipeline stages")
    parser.add_argument("--context", type=_positive, metavar="TOKENS", help="of a sequence (default: the model's longest)")
    parser.add_argument("--utilization", type=float, metavar="SHARE", help="of the GPU (default: the engine's own)")
    parser.add_argument("--activation-mib", type=_whole, metavar="MIB", help="the activation peak that an engine logged")
    parser.add_argument("--non-torch-mib", type=_whole, metavar="MIB", help="the memory beside torch that an engine logged")
    parser.add_argument("--json", action="store_true", help="plain data instead of a table")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a positive whole number, not {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0 up, not {text!r}")
    return int(text)


def _mib(size: int | None) -> int | None:
    return None if size is None else size * 2**20


def _read(name: str) -> tuple[Mapping[str, Any], int | None, dict[str, Any]]:
    """The configuration; bytes of the tensors where a GGUF file holds them; what it says of dtype and quantization."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        file = read_gguf(path)
        config = config_from_gguf(file)
        stored = sum(tensor.stored_bytes for tensor in file.tensors.values())
        quantization = _PLAIN.get(file.file_type, file.file_type)
        return config, stored, {"quantization": quantization, "dtype": _dtype(config), "group_size": GROUP}
    if path.suffix == ".gguf":
        raise BadInputError(f"there is no file {name}")
    shapes = sorted(folder.name for folder in SHAPES.iterdir())
    if not path.exists() and name.count("/") != 1 and name not in (*shapes, REFERENCE_MODEL):
        raise InvalidSpecError("model", name, [*shapes, REFERENCE_MODEL, "a folder", "a .gguf file", "a hub id"])
    config = Model(name, weights="real" if path.is_dir() else "dummy").config
    quantization, group = _quantization(config)
    return config, None, {"quantization": quantization, "dtype": _dtype(config), "group_size": group}


def _dtype(config: Mapping[str, Any]) -> str:
    return _WORDS.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16")


def _quantization(config: Mapping[str, Any]) -> tuple[str, int]:
    """Format and group size that a config.json declares: none where it is silent.

    Raises:
        BadInputError: a method that is not known here.
    """
    declared = config.get("quantization_config")
    name = stored_format(declared)
    name = _ALIKE.get(name, name)
    if name not in FORMATS:
        raise BadInputError(
            f"config.json declares the quantization {name!r}, which is not known here; name one with --quantization"
        )
    return name, group_size(declared) or GROUP


def _lines(plan: MemoryPlan, gpu: Gpu, cell: Mapping[str, Any]) -> list[str]:
    budget = plan.budget
    ranks = cell["tp"] * cell["pp"]
    roles = ", ".join(f"{role} {_gib(size)}" for role, size in plan.roles.items())
    rows = [
        ["line", "GiB", "how"],
        ["usable", _gib(budget.usable), f"{budget.total / GIB:.2f} of {gpu.name} x {budget.utilization:g} ({gpu.source})"],
        ["weights", _gib(budget.weights), f"{plan.bits:.4f} bits a weight; {roles}"],
        ["non-torch", _gib(budget.non_torch), _how("non-torch", plan)],
        ["activation peak", _gib(budget.activation_peak), _how("activation peak", plan)],
        ["left for keys and values", _gib(budget.kv_pool), f"{plan.kv_bytes_per_token:,} bytes a token"],
    ]
    title = f"{cell['model']} in {cell['engine']}, {cell['quantization']}, on {ranks} x {gpu.name}" + " (each)" * (ranks > 1)
    lines = [title, "", *table(rows), ""]
    if not plan.kv_tokens:
        return [*lines, f"does not fit: the rest leaves nothing for keys and values ({_gib(budget.kv_pool)} GiB)"]
    lines.append(f"KV cache: {plan.kv_tokens:,} tokens" + f" in {plan.kv_blocks:,} blocks" * (plan.kv_blocks != plan.kv_tokens))
    lines.append(f"maximum concurrency at {plan.context:,} tokens: {float(plan.sequences):.2f}x")
    return lines if plan.fits else [*lines, f"does not fit: not one sequence of {plan.context:,} tokens"]


def _how(line: str, plan: MemoryPlan) -> str:
    return "an estimate: give what an engine has logged" if line in plan.estimated else "as given"


def _gib(size: int) -> str:
    return f"{size / GIB:.4f}"


def _plain(plan: MemoryPlan, gpu: Gpu) -> dict[str, Any]:
    budget = plan.budget
    return {
        "gpu": gpu.name,
        "gpu_source": gpu.source,
        "total_bytes": budget.total,
        "utilization": budget.utilization,
        "usable_bytes": budget.usable,
        "weights_bytes": budget.weights,
        "weights_by_role_bytes": dict(plan.roles),
        "bits_per_weight": round(plan.bits, 4),
        "non_torch_bytes": budget.non_torch,
        "activation_peak_bytes": budget.activation_peak,
        "estimated": list(plan.estimated),
        "kv_pool_bytes": budget.kv_pool,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_tokens": plan.kv_tokens,
        "context_tokens": plan.context,
        "maximum_concurrency": round(float(plan.sequences), 2),
        "fits": plan.fits,
    }
