"""A hash of a tensor's bytes: whether two ranks hold the same part of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD, _BLOCK = 8, 1 << 18
_MATRIX = 2
_LANES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
"""Odd numbers of 64 bits, the golden ratio's and a prime of xxHash: what words and their places are multiplied with."""


def digest(tensor: torch.Tensor) -> str:
    """64 bits of the tensor's bytes in the order of its memory, in hexadecimal; "" of a tensor without data.

    Computed where the tensor lies, 2 MiB at a time. It distinguishes weights, and does not withstand an attacker.
    """
    if tensor.device.type == "meta" or not tensor.numel():
        return ""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    place = 0
    for words in _words(tensor.detach()):
        places = torch.arange(place, place + len(words), device=words.device)
        mixed = (words ^ _mixed(places, _LANES[1])) * _signed(_LANES[0])
        total += _mixed(mixed, _LANES[1]).sum()
        place += len(words)
    return f"{int(total) % (1 << 64):016x}"


def _mixed(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Multiplied, and the high half folded onto the low one; overflow wraps."""
    product = values * _signed(factor)
    return product ^ (product >> 32)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _words(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Blocks of the tensor's bytes as whole numbers, of 8 bytes where they divide so."""
    # Turned round, as kernels like their weights: no copy is needed.
    whole = tensor.T if tensor.dim() == _MATRIX and tensor.T.is_contiguous() else tensor.contiguous()
    raw = whole.reshape(-1).view(torch.uint8)
    words = raw if len(raw) % _WORD else (raw.clone() if raw.data_ptr() % _WORD else raw).view(torch.int64)
    for block in words.split(_BLOCK):
        yield block.to(torch.int64)
