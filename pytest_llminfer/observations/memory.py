"""What an engine takes of the device, by category."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class MemoryReport(FromMessage):
    """Bytes by category, on the device that holds the model.

    weights_bytes: parameters and quantization state, each storage once. buffers_bytes: what else the model registers (RoPE tables).
    live_bytes: everything that the framework holds right now (CUDA: the allocator; CPU: all live tensors).
    load_peak_bytes, run_peak_bytes: the highest use while loading, and since the last reset, above what was in use
    before loading. measured_by: how the peaks were read ("torch allocator", "process resident set"), with what resolution_bytes.
    Where an engine keeps books of its own, in bytes of one device, None where it does not: kv_pool_bytes (keys and values, taken
    in advance), activation_peak_bytes (of its profiling run), graphs_bytes (captured graphs), graphs_estimate_bytes (what it
    expected of them), non_torch_bytes (what the device holds beside the framework's allocator), engine_weights_bytes (what
    loading the model took of the allocator, its rounding included), requested_bytes (the part of the device that it may take),
    accounted_bytes (what it has shared out of that). Over several ranks every figure is that of the rank with the most.
    """

    device: str
    weights_bytes: int
    buffers_bytes: int
    live_bytes: int
    load_peak_bytes: int
    run_peak_bytes: int
    measured_by: str
    resolution_bytes: int
    kv_pool_bytes: int | None = None
    activation_peak_bytes: int | None = None
    graphs_bytes: int | None = None
    non_torch_bytes: int | None = None
    graphs_estimate_bytes: int | None = None
    engine_weights_bytes: int | None = None
    requested_bytes: int | None = None
    accounted_bytes: int | None = None
