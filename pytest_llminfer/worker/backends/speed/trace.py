"""What a profiler's trace says of some steps: how long the accelerator was busy, and what it was given to do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KERNEL, _COPIES, _CALLS = "kernel", ("gpu_memcpy", "gpu_memset"), ("cuda_runtime", "cuda_driver")
_BETWEEN_HOST_AND_DEVICE = ("HtoD", "DtoH")
_REPLAYS = ("cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch")
_STARTS = (
    *("cudaLaunch", "cuLaunch", "cudaMemcpy", "cuMemcpy", "cudaMemset", "cuMemset"),
    *("hipLaunch", "hipExtLaunch", "hipModuleLaunch", "hipExtModuleLaunch", "hipMemcpy", "hipMemset"),
    *_REPLAYS,
)
_WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize")
_WAITS += ("cuEventSynchronize", "hipDeviceSynchronize", "hipStreamSynchronize", "hipEventSynchronize")
_NAME_LENGTH = 160


def summarise(events: Iterable[Mapping[str, Any]], *, steps: int) -> dict[str, Any]:
    """The fields of ``StepTrace`` for ``steps`` steps.

    events: of a trace in Chrome's format, as ``torch.profiler`` writes it; times in microseconds. Kernels in the replay of a
    captured graph have events of their own. Busy is the union of what runs on the device without the host: kernels, fills, and
    copies within it. A copy to or from the host takes as long as the host's memory lets it, and is counted only.
    """
    spans: list[tuple[float, float]] = []
    names: Counter[str] = Counter()
    copies = launches = replays = waits = 0
    for event in events:
        category, name = str(event.get("cat", "")).lower(), str(event.get("name", ""))
        if event.get("ph") != "X":
            continue
        if category == _KERNEL or category in _COPIES:
            if category == _KERNEL:
                names[name[:_NAME_LENGTH]] += 1
            else:
                copies += 1
            if not any(words in name for words in _BETWEEN_HOST_AND_DEVICE):
                spans.append((float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))))
        elif category in _CALLS:
            launches += name.startswith(_STARTS)
            replays += name.startswith(_REPLAYS)
            waits += name.startswith(_WAITS)
    return {
        "steps": steps,
        "busy_seconds": union_length(spans) / 1e6,
        "kernels": names.total(),
        "copies": copies,
        "synchronisations": waits,
        "launches": launches,
        "replays": replays,
        "names": dict(sorted(names.items())),
    }


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the line the intervals (start, end) cover together; what several cover counts once."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
