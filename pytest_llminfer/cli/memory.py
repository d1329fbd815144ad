"""``llminfer memory``: what will fit on a GPU, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf_mixtures import MIXTURES
from pytest_llminfer.checkpoints.gguf_model import config_from_gguf, read_gguf
from pytest_llminfer.cli.console import Parser, say
from pytest_llminfer.engines import profiles
from pytest_llminfer.errors import BadInputError, InvalidSpecError
from pytest_llminfer.models.files import SHAPES
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.shape import TORCH_DTYPES
from pytest_llminfer.models.stored import declared_groups, stored_format
from pytest_llminfer.predict.formats import GROUP, FormatOptions
from pytest_llminfer.predict.gpus import GPUS, LISTED_BUT_KEPT, Gpu, find_gpu
from pytest_llminfer.predict.kv import BITS
from pytest_llminfer.predict.plan import Deployment, Known, MemoryPlan, plan_memory
from pytest_llminfer.predict.weights import FORMATS
from pytest_llminfer.report.align import align
from pytest_llminfer.spec import REFERENCE_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.predict.budget import DeviceBudget

GIB = 2**30
_WORDS = {name: word for word, name in TORCH_DTYPES.items()}
_ALIKE = {"w8a16": "w8a8", "w4a8": "w4a16"}
"""Formats whose weights take as much as another's: only activations differ."""
_PLAIN = {"f32": "none", "f16": "none", "bf16": "none"}


def run(argv: Sequence[str]) -> int:
    """Run ``llminfer memory`` with these arguments: status 0 if a sequence of that length fits, 1 if none does.

    Raises:
        InvalidSpecError: a GPU, quantization or engine that is not known here.
        BadInputError: no such model, or sizes that mean nothing.
        UnsupportedError: an architecture, quantization or split whose bytes are not known here.
    """
    given = _parser().parse_args(argv)
    gpu = find_gpu(given.gpu)
    if given.quantization is not None and given.quantization not in FORMATS:
        raise InvalidSpecError("quantization", given.quantization, FORMATS)
    config, file_bytes, found = _read(given.model, given.quantization, given.dtype)
    quantization = found["quantization"]
    engine = given.engine or ("llamacpp" if file_bytes is not None or quantization in MIXTURES else "vllm")
    deployment = Deployment(
        engine=profiles.profile(engine),
        dtype=found["dtype"],
        quantization=quantization,
        kv_dtype=given.kv_dtype,
        tp=given.tp,
        pp=given.pp,
        options=FormatOptions(group_size=given.group_size or found["group_size"]),
    )
    known = Known(
        weights=file_bytes,
        activation_peak=_mib(given.activation_mib),
        non_torch=_mib(given.non_torch_mib),
        graphs=_mib(given.graphs_mib),
        # vLLM's own choice looks at the name as well as the size.
        batched_tokens=given.batched_tokens or (8192 if gpu.name.startswith("A100") else None),
    )
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
    parser.add_argument("--engine", type=_engine, metavar="ENGINE", help="whose accounting (default: vllm; llamacpp for GGUF)")
    parser.add_argument("--quantization", metavar="FORMAT", help=f"of {', '.join(FORMATS)} (default: what the model says)")
    parser.add_argument(
        "--group-size", type=_group, metavar="N", help=f"of gptq, awq and w4a16, -1: of a row (default: the model's, or {GROUP})"
    )
    parser.add_argument("--dtype", choices=sorted(TORCH_DTYPES), help="of what is not quantized (default: what the model says)")
    parser.add_argument("--kv-dtype", choices=["auto", *BITS], default="auto", help="of keys and values (default: the engine's)")
    parser.add_argument("--tp", type=_positive, default=1, metavar="N", help="tensor-parallel ranks")
    parser.add_argument("--pp", type=_positive, default=1, metavar="N", help="pipeline stages")
    parser.add_argument("--context", type=_positive, metavar="TOKENS", help="of a sequence (default: the model's longest)")
    parser.add_argument("--utilization", type=float, metavar="SHARE", help="of the GPU (default: the engine's own)")
    parser.add_argument("--activation-mib", type=_whole, metavar="MIB", help="the activation peak that an engine logged")
    parser.add_argument("--non-torch-mib", type=_whole, metavar="MIB", help="the memory beside torch that an engine logged")
    parser.add_argument("--graphs-mib", type=_whole, metavar="MIB", help="captured graphs that an engine takes out of its pool")
    parser.add_argument("--batched-tokens", type=_positive, metavar="N", help="of a batch (default: vLLM's offline, by GPU)")
    parser.add_argument("--json", action="store_true", help="plain data instead of a table")
    return parser


def _engine(text: str) -> str:
    """An engine whose profile says how it shares out a device; only for a name of another distribution are those looked at."""
    if text in profiles.BUILT_IN and profiles.profile(text).sharing is not None:
        return text
    planned = sorted(each.name for each in profiles.loaded() if each.sharing is not None)
    if text not in planned:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(planned)})")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a positive whole number, not {text!r}")
    return int(text)


def _group(text: str) -> int:
    return -1 if text == "-1" else _positive(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0 up, not {text!r}")
    return int(text)


def _mib(size: int | None) -> int | None:
    return None if size is None else size * 2**20


def _read(name: str, quantization: str | None, dtype: str | None) -> tuple[Mapping[str, Any], int | None, dict[str, Any]]:
    """The configuration; bytes of the tensors where a GGUF file holds them; dtype and format, as asked for or as it says."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        file = read_gguf(path)
        config = config_from_gguf(file)
        stored = sum(tensor.stored_bytes for tensor in file.tensors.values())
        held = _PLAIN.get(file.file_type, file.file_type)
        if quantization not in (None, held):
            raise BadInputError(f"{name} is stored as {held}, not {quantization}; leave --quantization out")
        return config, stored, {"quantization": held, "dtype": dtype or _dtype(config), "group_size": GROUP}
    if path.suffix == ".gguf":
        raise BadInputError(f"there is no file {name}")
    shapes = sorted(folder.name for folder in SHAPES.iterdir())
    if not path.exists() and name.count("/") != 1 and name not in (*shapes, REFERENCE_MODEL):
        raise InvalidSpecError("model", name, [*shapes, REFERENCE_MODEL, "a folder", "a .gguf file", "a hub id"])
    config = Model(name, weights="real" if path.is_dir() else "dummy").config
    found, group = _quantization(config, quantization)
    return config, None, {"quantization": found, "dtype": dtype or _dtype(config), "group_size": group}


def _dtype(config: Mapping[str, Any]) -> str:
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if named not in _WORDS:
        raise BadInputError(f"config.json declares the dtype {named!r}, which is not known here; name one with --dtype")
    return _WORDS[named]


def _quantization(config: Mapping[str, Any], asked: str | None) -> tuple[str, int]:
    """Format and group size: what is asked for, or else what a config.json declares, none where it is silent.

    Raises:
        BadInputError: a method that is not known here.
        UnsupportedError: a variant whose bytes are not, or layers that are left in 16 bits.
    """
    name = stored_format(config.get("quantization_config"))
    name = _ALIKE.get(name, name)
    if asked is not None and asked != name:
        return asked, GROUP
    groups = declared_groups(config)
    if name not in FORMATS:
        raise BadInputError(
            f"config.json declares the quantization {name!r}, which is not known here; name one with --quantization"
        )
    return name, groups or GROUP


def _lines(plan: MemoryPlan, gpu: Gpu, cell: Mapping[str, Any]) -> list[str]:
    budget = plan.budget
    ranks = cell["tp"] * cell["pp"]
    roles = ", ".join(f"{role} {_gib(size)}" for role, size in plan.roles.items())
    rows = [
        ["line", "GiB", "how"],
        ["usable", _gib(budget.usable), _share(budget, gpu)],
        ["weights", _gib(budget.weights), f"{plan.bits:.4f} bits a weight; {roles}"],
        *(
            []
            if budget.before
            else [
                ["non-torch", _gib(budget.non_torch), _how("non-torch", plan)],
                ["activation peak", _gib(budget.activation_peak), _how("activation peak", plan)],
            ]
        ),
        *([["graphs", _gib(budget.graphs), "as given"]] if budget.graphs else []),
        ["left for keys and values", _gib(budget.kv_pool), f"{plan.kv_bytes_per_token:,} bytes a token"],
    ]
    title = f"{cell['model']} in {cell['engine']}, {cell['quantization']}, on {ranks} x {gpu.name}" + " (each)" * (ranks > 1)
    lines = [title, "", *align(rows, rule="-"), ""]
    if not plan.kv_tokens:
        return [*lines, f"does not fit: the rest leaves nothing for keys and values ({_gib(budget.kv_pool)} GiB)"]
    lines.append(f"KV cache: {plan.kv_tokens:,} tokens" + f" in {plan.kv_blocks:,} blocks" * (plan.kv_blocks != plan.kv_tokens))
    lines.append(f"maximum concurrency at {plan.context:,} tokens: {float(plan.sequences):.2f}x")
    return lines if plan.fits else [*lines, f"does not fit: not one sequence of {plan.context:,} tokens"]


def _share(budget: DeviceBudget, gpu: Gpu) -> str:
    left = f"({budget.total / GIB:.2f} - {budget.before / GIB:.2f} in use before)" if budget.before else f"{budget.total / GIB:.2f}"
    listed = "" if gpu.cuda_mib else f"; nvidia-smi's total, up to {100 * LISTED_BUT_KEPT:.1f} % too many"
    return f"{left} of {gpu.name} x {budget.utilization:g} ({gpu.source}{listed})"


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
        "graphs_bytes": budget.graphs,
        "in_use_before_bytes": budget.before,
        "total_is_nvidia_smis": not gpu.cuda_mib,
        "estimated": list(plan.estimated),
        "kv_pool_bytes": budget.kv_pool,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_tokens": plan.kv_tokens,
        "context_tokens": plan.context,
        "maximum_concurrency": round(float(plan.sequences), 2),
        "fits": plan.fits,
    }
