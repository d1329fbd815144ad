"""What torch raises when memory runs out, as the error of this package."""

from __future__ import annotations

import contextlib
import gc
import traceback
from typing import TYPE_CHECKING

import torch

from pytest_llminfer.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CPU_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory")


@contextlib.contextmanager
def out_of_memory_named(doing: str) -> Iterator[None]:
    """Raise OutOfMemoryError in place of torch's own, and release the device memory that the failed work held.

    Raises:
        OutOfMemoryError: the block ran out of memory; other errors pass unchanged.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = _first_line(error)
        if not _is_out_of_memory(error):
            raise
        # The error lives on as the context of the one below: without this, its frames would keep the failed call's tensors.
        traceback.clear_frames(error.__traceback__)
    else:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemoryError(
        f"out of memory while {doing}: {message}; use a smaller model, batch or max_batch_tokens, or another quantization"
    )


@contextlib.contextmanager
def inference(doing: str) -> Iterator[None]:
    """A request that computes: nothing is kept for gradients, and memory that runs out is named."""
    with out_of_memory_named(doing), torch.inference_mode():
        yield


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _CPU_WORDS)


def _first_line(error: Exception) -> str:
    """The allocation that failed, without torch's advice about its allocator."""
    return ". ".join(" ".join(str(error).split()).split(". ")[:2])[:300] or type(error).__name__
