"""Ways through a model's KV cache that must all give the same distributions, as an engine is asked for them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHES = ("none", "dynamic", "static", "quantized", "fp8")


@dataclass(frozen=True, slots=True)
class CachePath:
    """How given tokens are fed to a model.

    A cache has ``batch * beams`` rows. Its columns are the tokens, their pads, and the padding that evens out the rows of a batch.

    Attributes:
        chunks: Lengths of the successive forward passes over a sequence of T tokens, which sum to T: ``(T,)`` is prefill,
            ``(1,) * T`` is decoding, anything between is chunked prefill or a conversation of several turns. Empty means ``(T,)``.
        cache: One of ``CACHES``. ``none`` recomputes every prefix; ``dynamic`` is what the configuration implies, sliding-window
            layers included; ``static`` preallocates its columns and ``spare`` slots; ``quantized`` packs older tokens into
            ``cache_bits``; ``fp8`` has one scale a tensor, set by the largest value of the first chunk. The last two leave the
            first chunk exact in the pass that computes it, so their effect shows only in later chunks.
        cache_bits: Bits of a value in a ``quantized`` cache, 2 or 4.
        pads_left: Masked tokens before every sequence.
        pads_right: Masked tokens after what the first chunk holds of a sequence. With more chunks they lie between its tokens, as
            after a prompt in a batch padded on the right.
        batch: Rows computed together, filled with other sequences of the request; 1 computes the sequence alone. Rows are padded to
            one length on the left, or on the right if only ``pads_right`` asks for pads.
        crop: After how many tokens ``crop_extra`` other tokens are fed and cropped away again; 0 for never.
        crop_extra: How many tokens are fed and cropped at ``crop``; 0 where nothing is cropped.
        beams: Rows copied out of one after its first chunk. Each chunk continues in one of them, with other tokens in the others,
            and all change places after it. 1 for no copies.
        prefix: Tokens whose cache is filled in one pass by another sequence with the same beginning, then cropped, copied and
            continued; static and quantized caches, which cannot be cropped, are filled with these tokens alone. 0 for none.
        residual: Latest tokens, at most, that a ``quantized`` cache keeps unpacked.
        spare: Slots of a ``static`` cache that stay empty.
    """

    chunks: tuple[int, ...] = ()
    cache: str = "dynamic"
    cache_bits: int = 4
    pads_left: int = 0
    pads_right: int = 0
    batch: int = 1
    crop: int = 0
    crop_extra: int = 0
    beams: int = 1
    prefix: int = 0
    residual: int = 128
    spare: int = 16

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Self:
        """Build from a message; fields that this version does not know are refused: they would ask for nothing.

        Raises:
            BadInputError: an unknown field.
        """
        if unknown := sorted(message.keys() - {entry.name for entry in fields(cls)}):
            raise BadInputError(f"unknown parts of a cache path: {', '.join(unknown)}")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in message.items()}
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message."""
        return {
            entry.name: list(value) if isinstance(value := getattr(self, entry.name), tuple) else value for entry in fields(self)
        }
