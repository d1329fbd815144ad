"""The same weights in a wider dtype, block after block: what the served model would predict if it did not round.

A second copy of a 7B model in float32 takes 28 GB. Here one decoder block at a time is held in the wide dtype, beside what lies
outside of the blocks (embeddings, the last norm and the output matrix): about 5 GB of a Llama-3-8B shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_llminfer.worker.backends.batching import plan_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

_ROWS = 8
_WITHOUT_NARROW_KERNELS = ("eager", "sdpa")
"""Implementations of attention that compute in any dtype; flash attention does in 16 bits alone."""


class Upcast:
    """While entered, ``model`` computes in ``dtype`` with the values of its own parameters and buffers, which are put back after.

    The modules' entries are replaced, not the tensors: nothing of what is served is written to.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._handles: list[Any] = []
        self._outside: list[tuple[dict[str, Any], str, Any]] = []
        self._inside: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> Self:
        self._attention = self._model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
        if self._attention not in _WITHOUT_NARROW_KERNELS:
            self._model.set_attn_implementation("eager")
        self._tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        blocks = _blocks(self._model)
        inside = {module for block in blocks for module in block.modules()}
        self._replace((module for module in self._model.modules() if module not in inside), self._outside)
        for block in blocks:
            self._handles += [
                block.register_forward_pre_hook(self._before_block),
                block.register_forward_hook(self._after_block, always_call=True),
            ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        _put_back(self._inside)
        _put_back(self._outside)
        torch.backends.cuda.matmul.allow_tf32 = self._tf32
        if self._attention not in _WITHOUT_NARROW_KERNELS:
            self._model.set_attn_implementation(self._attention)

    def _before_block(self, block: Any, _inputs: Any) -> None:
        self._replace(block.modules(), self._inside)

    def _after_block(self, _block: Any, _inputs: Any, _output: Any) -> None:
        _put_back(self._inside)

    def _replace(self, modules: Iterable[Any], kept: list[tuple[dict[str, Any], str, Any]]) -> None:
        """A tied parameter is made once: its names share the wide one as they share the narrow one."""
        made: dict[int, Any] = {}
        for module in modules:
            if getattr(module, "compute_dtype", None) is not None:
                # Codes and scales stay as they are: what bitsandbytes multiplies them by, and adds up in, is wide.
                kept.append((module.__dict__, "compute_dtype", module.compute_dtype))
                module.compute_dtype = self._dtype
            for entries in (module._parameters, module._buffers):  # noqa: SLF001 - the entries that an attribute is read from
                for name, tensor in entries.items():
                    if tensor is None or not tensor.is_floating_point() or tensor.dtype == self._dtype:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = _wide(tensor, self._dtype)
                    kept.append((entries, name, tensor))
                    entries[name] = made[id(tensor)]


def _wide(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = tensor.detach().to(dtype)
    return torch.nn.Parameter(wide, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else wide


def _put_back(kept: list[tuple[dict[str, Any], str, Any]]) -> None:
    while kept:
        entries, name, tensor = kept.pop()
        entries[name] = tensor


def _blocks(model: Any) -> list[Any]:
    """The members of the outermost lists of modules: decoder blocks."""
    found: list[Any] = []
    for child in model.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else _blocks(child)
    return found


def score_listed(
    model: Any,
    sequences: Sequence[Sequence[int]],
    listed: Sequence[np.ndarray],
    *,
    max_batch_tokens: int,
    progress: Callable[[str, int, int], None],
) -> list[np.ndarray]:
    """Per sequence float64 (T, k): log-probabilities in nats of the ``listed`` tokens (T, k) at its last T positions.

    Sequences of one batch are padded on the right: a causal model sees no pad from a place before it, so that there is no mask.
    The dtype is float32, and float64 for a model that is served in float32.
    """
    dtype = torch.float64 if model.dtype == torch.float32 else torch.float32
    found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    budget = min(max_batch_tokens, _ROWS * max(map(len, sequences)))
    done = 0
    with torch.no_grad(), Upcast(model, dtype):
        for batch in plan_batches([len(sequence) - 1 for sequence in sequences], max_tokens=0, max_batch_tokens=budget):
            inputs = [list(sequences[number][:-1]) for number in batch]
            width = max(map(len, inputs))
            first = min(len(row) - len(listed[number]) for row, number in zip(inputs, batch, strict=True))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=model.device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=width - first).logits
            for row, number in enumerate(batch):
                end = len(inputs[row]) - first
                own = logits[row, end - len(listed[number]) : end].double().log_softmax(dim=-1)
                wanted = torch.from_numpy(np.ascontiguousarray(listed[number], np.int64)).to(own.device)
                found[number] = own.gather(-1, wanted).cpu().numpy()
            done += len(batch)
            progress("scoring in fp32", done, len(sequences))
    return found
