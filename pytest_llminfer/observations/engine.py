"""What was loaded: the engine, its ranks, and what their device can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class Rank(FromMessage):
    """One process that holds a part of the model.

    name: as the engine or the operating system calls the process. device: "cpu", or the exact id of its accelerator.
    weights_bytes: what it holds of the parameters.
    """

    pid: int
    name: str
    device: str
    weights_bytes: int
    tp_rank: int = 0
    pp_rank: int = 0
    dp_rank: int = 0


@dataclass(frozen=True, slots=True)
class Calibration(FromMessage):
    """What the device can do right now, measured beside the engine: the yardstick of a throughput.

    matmul_flops_per_second: a large matrix product in the cell's dtype; copy_bytes_per_second: a large copy, bytes read plus
    bytes written; python_loops_per_second: a fixed interpreter loop, since small models are bound by the host.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float
    python_loops_per_second: float


@dataclass(frozen=True, slots=True)
class EngineInfo(FromMessage):
    """What was loaded, as the worker resolved it.

    dtype, kv_dtype: resolved, never ``auto``. device: "cpu" or "cuda"; device_name: the exact name of the processor or
    accelerator. capabilities: the requests that this engine answers. versions: engine, framework, driver. load_seconds by phase.
    served_model: the name by which a server that somebody else runs knows the model; empty for other engines.
    """

    dtype: str
    kv_dtype: str
    device: str
    device_name: str
    device_count: int
    capabilities: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()
    served_model: str = ""
