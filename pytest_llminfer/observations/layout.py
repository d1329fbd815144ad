"""How an engine stores the parameters of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Parameter(FromMessage):
    """One stored tensor of the loaded model.

    shape: of the weight it stands for, (out, in) for a linear; stored_shape: of the tensor that holds it, packed or not.
    dtype: of that tensor, in torch's words ("bfloat16", "int8", "uint8"). stored_bytes: the tensor with all its quantization
    state (scales, absolute maxima, codebooks); state_bytes: that state alone; state: dtype and bytes of each of its tensors, empty
    where the engine does not say. packing: "" or the format that the engine names ("nf4", "fp4", "int8"). double_quantized:
    whether the scales are quantized too; None where that has no meaning. content: a hash of the tensor's bytes, of a model that is
    spread over ranks; "" where a library of the CPU holds them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    stored_bytes: int
    state_bytes: int = 0
    packing: str = ""
    block_size: int | None = None
    double_quantized: bool | None = None
    device: str = "cpu"
    state: tuple[tuple[str, int], ...] = ()
    content: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Every stored tensor once, and the pairs of names that share one: of a whole model, or of the rank that is named."""

    parameters: tuple[Parameter, ...]
    tied: tuple[tuple[str, str], ...]
    tp_rank: int = 0
    pp_rank: int = 0

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Layout:
        """Build from a worker's message."""
        return cls(
            parameters=tuple(Parameter.from_message(entry) for entry in message["parameters"]),
            tied=tuple((first, second) for first, second in message["tied"]),
            tp_rank=int(message.get("tp_rank", 0)),
            pp_rank=int(message.get("pp_rank", 0)),
        )

    @classmethod
    def of_ranks(cls, message: Mapping[str, Any]) -> tuple[Layout, ...]:
        """One of each rank of a worker's model, by pipeline and tensor rank."""
        ranks = (cls.from_message(rank) for rank in message.get("ranks", [message]))
        return tuple(sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank)))
