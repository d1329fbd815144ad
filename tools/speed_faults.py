"""Slowdowns for real, put into a live model: one kernel more a step, or a host that waits. Run in a worker, as probes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOT = "_llminfer_slowdown"
_TIMED, _TRIES = 20, 4


def add_kernel(model: Any, seconds: float) -> float:
    """Let every step run one copy on the device that takes about ``seconds``; what it takes by the device's own events."""
    device = next(model.parameters()).device
    size = max(int(seconds * 1e12), 1 << 20)
    for _ in range(_TRIES):
        source = torch.ones(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        taken = _seconds(lambda: torch.add(source, 1, out=target), device)  # noqa: B023 - called here and now
        size = max(int(size * seconds / taken), 1 << 10)
    _install(model, lambda: torch.add(source, 1, out=target))
    return taken


def busy_host(model: Any, seconds: float) -> float:
    """Keep the host for ``seconds`` at every step, without sleeping: a sleep takes some 60 microseconds more than it is told."""

    def spin() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    _install(model, spin)
    return seconds


def heal(model: Any) -> None:
    """Take the slowdown out again."""
    _install(model, None)


def _install(model: Any, action: Callable[[], object] | None) -> None:
    """Have ``action`` run once a step.

    vLLM's forward pass may be a captured graph: the logits are computed after it, outside. In transformers ``generate`` reads the
    signature of ``forward`` and prepares fewer inputs for a wrapper, 5 % of a decode step: a hook leaves it as it is.
    """
    if not hasattr(model, _SLOT):
        slot: list[Callable[[], object]] = []
        setattr(model, _SLOT, slot)

        def act(*_: Any) -> None:
            for each in slot:
                each()

        if hasattr(model, "compute_logits"):
            original = model.compute_logits

            def slowed(*args: Any, **kwargs: Any) -> Any:
                act()
                return original(*args, **kwargs)

            model.compute_logits = slowed
        else:
            model.register_forward_pre_hook(act)
    getattr(model, _SLOT)[:] = [action] if action else []


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run of the action, of many in a row."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(_TIMED):
            action()
        return (time.perf_counter() - started) / _TIMED
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    action()
    start.record()
    for _ in range(_TIMED):
        action()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3 / _TIMED
