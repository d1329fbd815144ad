"""From a cell to a live model: checks that name what is wrong, then transformers' own loading path, whatever the weights."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
import transformers

from pytest_llminfer.errors import BadInputError, EngineStartError, UnsupportedError
from pytest_llminfer.worker.backends.transformers import sharding
from pytest_llminfer.worker.backends.transformers.dummy import random_state_dict
from pytest_llminfer.worker.backends.transformers.faults import out_of_memory_named
from pytest_llminfer.worker.backends.transformers.prequantized import check_stored
from pytest_llminfer.worker.backends.transformers.quantization import keep_4bit_layout, quantization_config, settle
from pytest_llminfer.worker.backends.transformers.storage import own_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.transformers.arguments import Arguments

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPEC_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NAMED = 3


def read_config(spec: EngineSpec, model_path: str) -> Any:
    """The model's configuration, after checking that model and cell go together.

    Raises:
        BadInputError: it cannot be read, or declares another storage than the cell.
        EngineStartError: the installed transformers has no causal language model of its type.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(model_path)
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"transformers cannot read the configuration of {model_path}: {_one_line(error)}") from error
    check_stored(spec, model_path, getattr(config, "quantization_config", None))
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise EngineStartError(
            f"transformers {transformers.__version__} has no causal language model of type {config.model_type!r}, "
            f"which {model_path} is"
        )
    return config


def model_class(config: Any) -> Any:
    """The class that AutoModelForCausalLM would choose; importing its module is part of this call."""
    chosen = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return chosen[0] if isinstance(chosen, (tuple, list)) else chosen


def resolve_dtype(spec: EngineSpec, config: Any) -> torch.dtype:
    """The dtype of the cell: ``auto`` means what the configuration says, float32 where it says nothing.

    Raises:
        UnsupportedError: the configuration's dtype is none of those that a cell can have.
    """
    if spec.dtype != "auto":
        return TORCH_DTYPES[spec.dtype]
    named = getattr(config, "dtype", None) or torch.float32
    dtype = getattr(torch, named) if isinstance(named, str) else named
    if dtype not in SPEC_DTYPES:
        raise UnsupportedError(f"the configuration's dtype {dtype} is none of {', '.join(TORCH_DTYPES)}", "name one with dtype=")
    return dtype


def load_model(
    spec: EngineSpec,
    model_path: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    arguments: Arguments,
    progress: Callable[..., None],
) -> Any:
    """The model on ``device``, in evaluation mode, with an empty generation_config of its own.

    Raises:
        BadInputError: weights that are missing, truncated, corrupt or of another shape than the configuration's.
        OutOfMemoryError: the device is too small. EngineStartError: transformers refuses for another reason.
    """
    keywords: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, **arguments.from_pretrained}
    if (quantization := quantization_config(spec.quantization)) is not None:
        keywords["quantization_config"] = quantization
    if spec.tp > 1:
        keywords |= sharding.from_pretrained_keywords(spec.tp)
    elif device.type == "cuda" or spec.quantization != "none":
        keywords.setdefault("device_map", {"": device})
    progress("loading", 0, 1)
    with out_of_memory_named("loading the model"):
        try:
            model, report = _from_pretrained(spec, model_path, config, dtype, device, keywords)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise
            raise EngineStartError(f"transformers cannot load {model_path}: {_one_line(error)}") from error
    _check_complete(model_path, report)
    if spec.tp > 1:
        sharding.free_the_rest(model)
    if not arguments.repack_4bit_for_cpu:
        keep_4bit_layout(model)
    settle(model, spec.quantization)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    else:
        _touch(model)
    progress("loading", 1, 1)
    return model.eval().requires_grad_(requires_grad=False)


def _from_pretrained(
    spec: EngineSpec, model_path: str, config: Any, dtype: torch.dtype, device: torch.device, keywords: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    chosen = model_class(config)
    if spec.weights == "real":
        return chosen.from_pretrained(model_path, config=config, **keywords)  # type: ignore[no-any-return]
    # Of a split model each rank keeps copies of its shards, so that here too one buffer is enough.
    state = random_state_dict(chosen, config, dtype, shared=device.type == "cuda" or spec.tp > 1)
    return chosen.from_pretrained(None, config=config, state_dict=state, **keywords)  # type: ignore[no-any-return]


def _check_complete(model_path: str, report: dict[str, Any]) -> None:
    """Refuse a checkpoint with holes: transformers fills them with random values, and only logs it."""
    if missing := sorted(report.get("missing_keys") or ()):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise BadInputError(
            f"the weights of {model_path} lack {', '.join(missing[:_NAMED])}{more}; the configuration and the files do not match"
        )


def _touch(model: Any) -> None:
    """Read one byte of every page: mapped weights count as resident only once they were read."""
    for tensor in [*model.parameters(), *model.buffers()]:
        data = own_part(tensor.detach())
        if data.is_contiguous() and data.numel():
            data.view(-1).view(torch.uint8)[::4096].sum()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
