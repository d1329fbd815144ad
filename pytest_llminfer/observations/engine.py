"""What was loaded: the engine, its ranks, and what their device can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class Rank(FromMessage):
    """One process that holds a part of the model.

    Attributes:
        pid: Its process id on this machine.
        name: What the engine or the operating system calls the process.
        device: ``cpu``, or the exact id of its accelerator (``GPU-…``).
        weights_bytes: Bytes of the parameters that it holds, with their quantization state.
        tp_rank: Its place in the tensor-parallel group, from 0.
        pp_rank: Its pipeline stage, from 0.
        dp_rank: Its replica, from 0.
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

    Attributes:
        matmul_flops_per_second: Floating-point operations per second of a large matrix product in the cell's dtype.
        copy_bytes_per_second: Bytes read plus bytes written per second by a large copy.
        python_loops_per_second: Iterations per second of a fixed interpreter loop, since small models are bound by the host.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float
    python_loops_per_second: float


@dataclass(frozen=True, slots=True)
class EngineInfo(FromMessage):
    """What was loaded, as the worker resolved it.

    Attributes:
        dtype: What the engine computes in, in the words of a cell; ``auto`` only of a remote server whose model's configuration is
            not at hand.
        kv_dtype: What it keeps keys and values in, in the words of a cell; ``auto`` likewise.
        device: ``cpu`` or ``cuda``; ``gpu`` for another accelerator of llama.cpp, ``remote`` for a server that runs elsewhere.
        device_name: The exact name of the processor or accelerator; host and port of a server that runs elsewhere.
        device_count: How many devices one replica takes; 0 for a server that runs elsewhere.
        capabilities: Names of the requests that this engine answers.
        versions: Name to version: ``engine``, its framework and packages, ``python``, and ``driver`` on a GPU.
        load_seconds: Phase to seconds, as the engine names its phases (``import``, ``load``, ``compile``).
        end_token_ids: Tokens at which the model ends an answer; empty where they are not known.
        served_model: The name by which a server that runs elsewhere knows the model; empty for other engines.
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
