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

    Attributes:
        name: As the engine names it; a safetensors or GGUF file's under its transformers name.
        dtype: Of the stored tensor, in torch's words ("bfloat16", "int8", "uint8"); of a GGUF type without such a word, ggml's.
        shape: Of the weight it stands for; (out, in) for a linear.
        stored_shape: Of the tensor that holds it, packed or not.
        stored_bytes: Bytes of the tensor with all its quantization state (scales, absolute maxima, codebooks).
        state_bytes: Bytes of the quantization state alone; 0 without any.
        packing: The format that the engine names ("nf4", "fp4", "int8"); empty for a plain tensor.
        block_size: Weights that share one scale; None where nothing is packed in blocks or the engine does not say.
        double_quantized: Whether the scales are quantized too; None where that has no meaning.
        device: Kind of device that holds it, ``cpu`` or ``cuda``.
        state: dtype and bytes of each tensor of the quantization state; empty where there is none or the engine does not say.
        content: Hash of the tensor's bytes, computed only for models that are split over ranks; empty otherwise, and where a CPU
            library holds them.
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
    """Every stored tensor of a whole model, or of one rank of it.

    Attributes:
        parameters: Every stored tensor once.
        tied: Pairs of names that share one tensor.
        tp_rank: Tensor-parallel rank that holds it; 0 for a whole model.
        pp_rank: Pipeline stage that holds it; 0 for a whole model.
    """

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
