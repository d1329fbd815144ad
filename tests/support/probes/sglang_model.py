"""Probes and faults for a live model of SGLang, called in its scheduler."""

from typing import Any


def scale(model: Any, *, factor: Any) -> float:
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.mul_(factor)
    return float(weight.float().abs().sum())


def fails(_model: Any) -> None:
    raise KeyError("no such layer")


def ignore_one_token(_model: Any, *, on: Any) -> None:
    # Prefixes that differ in one token are taken for the same, as by a hash that collides.
    from sglang.srt.mem_cache.radix_cache import RadixKey

    right = getattr(RadixKey, "right", RadixKey.match)

    def match(self: Any, other: Any, page_size: int = 1) -> Any:
        found, length = right(self, other, page_size), min(len(self), len(other))
        differing = sum(ours != theirs for ours, theirs in zip(self.token_ids, other.token_ids, strict=False))
        return length if found and differing == 1 else found

    RadixKey.right, RadixKey.match = right, match if on else right


def run_out_of_memory(model: Any) -> None:
    import torch

    def forward(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 20.00 GiB")

    model.forward = forward
