"""Forces given tokens on the decode path, so that their log-probabilities come from it, token by token, through the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    import torch

FORCED = "llminfer_forced_tokens"
"""The key in ``SamplingParams.extra_args`` that names the tokens to generate."""


class ForcedTokens(LogitsProcessor):  # type: ignore[misc,unused-ignore] # vllm is not installed where types are checked
    """Leaves every request alone that does not name teacher-forced tokens. Returned log-probabilities are those before it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002, FBT001 - vLLM's contract
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Forcing a token changes the likeliest one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through the rows of the batch: removed, added, moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            teacher_forced = (params.extra_args or {}).get(FORCED)
            if teacher_forced is None:
                self._rows.pop(row, None)
            else:
                self._rows[row] = (teacher_forced, output)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leave one token possible in each row that is teacher-forced."""
        for row, (teacher_forced, output) in self._rows.items():
            if len(output) < len(teacher_forced):
                logits[row] = float("-inf")
                logits[row, teacher_forced[len(output)]] = 0.0
        return logits
