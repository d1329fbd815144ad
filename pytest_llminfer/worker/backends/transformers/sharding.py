"""Tensor parallelism with transformers' own plan: what can be split, how the ranks meet, and what each of them holds."""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import transformers

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends.transformers.group import LISTENER_VARIABLE, own_rank
from pytest_llminfer.worker.backends.transformers.storage import own_part

if TYPE_CHECKING:
    from pytest_llminfer.spec import EngineSpec

# Longer than any client waits: the client's own time limit decides what hangs.
_PATIENCE = timedelta(hours=2)


def check_plan(config: Any) -> None:
    """Refuse a model that transformers would load whole on every rank.

    Raises:
        UnsupportedError: transformers has no tensor-parallel plan for it.
    """
    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no tensor-parallel plan for {config.model_type!r}", "use tp=1"
        )


def join(spec: EngineSpec) -> None:
    """Join the process group: rank 0 opens the store, the others connect to it.

    Raises:
        UnsupportedError: there are fewer GPUs than ranks.
    """
    import torch.distributed as ranks

    rank, cuda = own_rank(), torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < spec.tp:
        raise UnsupportedError(
            f"tp={spec.tp} needs {spec.tp} GPUs, and the engine sees {torch.cuda.device_count()}",
            "use a smaller tp, or make more visible with CUDA_VISIBLE_DEVICES",
        )
    listener = {"master_listen_fd": int(os.environ.pop(LISTENER_VARIABLE))} if rank == 0 else {}
    store = ranks.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        spec.tp,
        rank == 0,
        timeout=_PATIENCE,
        wait_for_workers=False,
        **listener,
    )
    device = {}
    if cuda:
        torch.cuda.set_device(rank)
        device["device_id"] = torch.device("cuda", rank)
    ranks.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=spec.tp, timeout=_PATIENCE, **device)


def from_pretrained_keywords(size: int) -> dict[str, Any]:
    """What the installed transformers calls "the model's own plan over ``size`` ranks"."""
    from transformers.distributed import DistributedConfig

    if "tp_size" in {field.name for field in dataclasses.fields(DistributedConfig)}:
        return {"distributed_config": DistributedConfig(tp_size=size, tp_plan="auto")}
    return {"tp_plan": "auto", "tp_size": size}


def agree_on_least(value: int, device: torch.device) -> int:
    """The least of all ranks' values: what decides batches must be the same everywhere."""
    agreed = torch.tensor(value, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
    return int(agreed)


def free_the_rest(model: Any) -> None:
    """Give each shard a storage of its own: a view of the whole tensor would keep all of it alive."""
    replaced: dict[int, torch.nn.Parameter] = {}
    # An id is a name only as long as its object lives.
    kept = []
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = own_part(parameter)
            if id(parameter) not in replaced and part.untyped_storage().nbytes() > part.nbytes:
                kept.append(parameter)
                replaced[id(parameter)] = torch.nn.Parameter(_with_part(parameter, part.detach().clone()), requires_grad=False)
            if id(parameter) in replaced:
                setattr(module, name, replaced[id(parameter)])


def _with_part(parameter: Any, part: torch.Tensor) -> torch.Tensor:
    if not hasattr(parameter, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def plan(model: Any) -> dict[str, str]:
    """The plan in force: parameters by name, without ``.weight`` and with ``*`` for layer numbers, to the way each is cut.

    What it does not name is held whole by every rank.
    """
    return dict(getattr(model, "tp_plan", None) or {})
