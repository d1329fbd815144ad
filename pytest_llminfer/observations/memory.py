"""What an engine takes of the device, by category."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class MemoryReport(FromMessage):
    """Bytes by category on the device that holds the model; over several ranks each figure is that of the rank with the most.

    The fields from ``kv_pool_bytes`` on are the engine's own accounts of one device; None where it keeps none.

    Attributes:
        device: Kind of the device, ``cpu`` or ``cuda``.
        weights_bytes: Parameters and quantization state, each storage once.
        buffers_bytes: What else the model registers, such as RoPE tables.
        live_bytes: Everything that the framework holds right now (CUDA: the allocator; CPU: all live tensors).
        load_peak_bytes: Highest use while loading, above what was in use before.
        run_peak_bytes: Highest use since the last reset of the peak, above what was in use before loading.
        measured_by: How the peaks were read ("torch allocator", "process resident set").
        resolution_bytes: Differences of a peak up to this size mean nothing.
        kv_pool_bytes: Keys and values, allocated in advance.
        activation_peak_bytes: Activations of the engine's profiling run.
        graphs_bytes: Captured CUDA graphs.
        non_torch_bytes: What the device holds outside the framework's allocator.
        graphs_estimate_bytes: What the engine expected the graphs to take.
        engine_weights_bytes: What loading the model took of the allocator, its rounding included.
        requested_bytes: The part of the device that the engine may take.
        accounted_bytes: What it has allotted out of that.
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
