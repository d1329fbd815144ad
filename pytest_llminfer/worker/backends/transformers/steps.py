"""What is kept of the logits of each step: the most likely tokens and the size of the logits, never the whole vocabulary."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import numpy as np

_HEARTBEAT_SECONDS = 10.0


class StepRecorder:
    """Top-k log-probabilities of the raw logits of every step of a batch.

    Raw means before temperature, penalties and filters, in float32. Only (rows, k) values a step stay on the device.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._ids: list[torch.Tensor] = []
        self._logprobs: list[torch.Tensor] = []
        self._largest: list[torch.Tensor] = []
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, logits: torch.Tensor) -> None:
        """One step: ``logits`` (rows, vocabulary)."""
        if not self._top:
            return
        raw = logits.float()
        values, ids = raw.topk(min(self._top, raw.shape[-1]), dim=-1)
        self._ids.append(ids)
        self._logprobs.append(values - raw.logsumexp(dim=-1, keepdim=True))
        self._largest.append(raw.abs().amax(dim=-1))

    def row(self, row: int, length: int) -> dict[str, np.ndarray]:
        """The fields of ``Generation`` for the first ``length`` steps of one row; empty if nothing was asked for.

        After :meth:`to_host`.
        """
        return {name: steps[row, :length] for name, steps in self._arrays.items()}

    def to_host(self) -> None:
        """Bring what was kept to the host in three copies instead of three a step."""
        kept = {"top_ids": self._ids, "top_logprobs": self._logprobs, "max_logit": self._largest} if self._top else {}
        self._arrays = {name: _by_row(steps, torch.int32 if name == "top_ids" else torch.float32) for name, steps in kept.items()}


def _by_row(steps: list[torch.Tensor], dtype: torch.dtype) -> np.ndarray:
    array: np.ndarray = torch.stack(steps, dim=1).to(dtype).cpu().numpy()
    return array


class ForwardObserver:
    """Sees the logits of every forward pass of ``model`` while it is entered, whatever the engine does with them."""

    def __init__(self, model: Any, recorder: StepRecorder, heartbeat: Callable[[], None]) -> None:
        self._model, self._recorder, self._heartbeat = model, recorder, heartbeat
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._handle = self._model.register_forward_hook(self._after_forward)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _after_forward(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._recorder.add(output.logits[:, -1])
        if time.monotonic() - self._last > _HEARTBEAT_SECONDS:
            self._heartbeat()
            self._last = time.monotonic()
