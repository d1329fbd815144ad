"""How PyTorch's CUDA caching allocator counts what it is asked for."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30
_ALLOCATION_STEP = 512
_SEGMENT = 2 * MIB
_LARGE = 10 * MIB
_NOT_SPLIT = MIB


def cuda_allocation(size: int) -> int:
    """Bytes that PyTorch's CUDA caching allocator counts for a tensor of ``size`` bytes (METHODS 4.1).

    Sizes are rounded up to 512 bytes. From 10 MiB on a tensor gets a segment in whole 2 MiB, and a rest of at most 1 MiB
    is not split off, so it counts. With ``expandable_segments:True``, and for tensors that are cut out of one large segment
    that was taken in advance (as transformers 5 loads a checkpoint), only the 512 bytes remain.
    """
    rounded = stepped(size)
    if rounded < _LARGE:
        return rounded
    segment = -(-rounded // _SEGMENT) * _SEGMENT
    return segment if segment - rounded <= _NOT_SPLIT else rounded


def stepped(size: int) -> int:
    """``size`` in whole steps of 512 bytes: the least that the allocator hands out."""
    return -(-size // _ALLOCATION_STEP) * _ALLOCATION_STEP
