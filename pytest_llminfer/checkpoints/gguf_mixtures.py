"""Which ggml type llama.cpp gives each weight of a dense Llama-like model, for every mixture that its quantizer knows.

Rules: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` of llama.cpp's src/llama-quant.cpp. Mixtures that need an
importance matrix are as they are with one; all others as without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.gguf import GGML_TYPES
from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Rule = tuple[tuple[str, str], ...]
"""Pairs of (condition, ggml type); the first condition that holds decides, and the usual type applies where none does."""

BLOCKS = {name: (block, size) for name, block, size in GGML_TYPES.values()}
"""ggml type → elements and bytes of a block."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """One file type of llama.cpp: which ggml type it gives each matrix.

    Attributes:
        usual: The type of every matrix that nothing below names.
        output: The type of the output matrix, or of the embedding that serves as one.
        embedding: The type of an embedding that is not the output matrix; empty for the usual one.
        parts: Name of a linear (``v_proj``) to the rules for it; linears that are not named have the usual type.
    """

    usual: str
    output: str = "q6_k"
    embedding: str = ""
    parts: Mapping[str, Rule] = field(default_factory=dict)


def _everywhere(kind: str) -> Rule:
    return (("everywhere", kind),)


def _small(usual: str, kept: str, embedding: str, o: str = "") -> Mixture:
    """The mixtures below 3 bits, which keep the first layers' down_proj and all v_proj wider."""
    parts = {
        "v_proj": (("grouped heads", "q4_k"), ("everywhere", kept)),
        "down_proj": (("first eighth", kept),),
        **({"o_proj": _everywhere(o)} if o else {}),
    }
    return Mixture(usual, output="q5_k", embedding=embedding, parts=parts)


_WIDER_THIRD: Rule = (("every third and the ends", "q6_k"),)
_IQ4 = {"v_proj": (("grouped heads", "q5_k"),), "down_proj": (("first eighth", "q5_k"),)}

MIXTURES: dict[str, Mixture] = {
    "q4_0": Mixture("q4_0"),
    "q4_1": Mixture("q4_1"),
    "q5_0": Mixture("q5_0"),
    "q5_1": Mixture("q5_1"),
    "q8_0": Mixture("q8_0", output="q8_0"),
    "q2_k": Mixture(
        "q2_k",
        parts={
            "v_proj": (("grouped heads", "q4_k"), ("everywhere", "q3_k")),
            "o_proj": _everywhere("q3_k"),
            "down_proj": _everywhere("q3_k"),
        },
    ),
    "q2_k_s": Mixture("q2_k", parts={"v_proj": (("grouped heads", "q4_k"),), "down_proj": (("first eighth", "q4_k"),)}),
    "q3_k_s": Mixture("q3_k"),
    "q3_k_m": Mixture(
        "q3_k",
        parts={
            "v_proj": (("first two", "q5_k"), ("everywhere", "q4_k")),
            "o_proj": _everywhere("q4_k"),
            "down_proj": (("first sixteenth", "q5_k"), ("everywhere", "q4_k")),
        },
    ),
    "q3_k_l": Mixture("q3_k", parts=dict.fromkeys(("v_proj", "o_proj", "down_proj"), _everywhere("q5_k"))),
    "q4_k_s": Mixture("q4_k", parts={"v_proj": (("first four", "q5_k"),), "down_proj": (("first eighth", "q5_k"),)}),
    "q4_k_m": Mixture("q4_k", parts=dict.fromkeys(("v_proj", "down_proj"), _WIDER_THIRD)),
    "q5_k_s": Mixture("q5_k"),
    "q5_k_m": Mixture("q5_k", parts=dict.fromkeys(("v_proj", "down_proj"), _WIDER_THIRD)),
    "q6_k": Mixture("q6_k"),
    "iq4_nl": Mixture("iq4_nl", parts=_IQ4),
    "iq4_xs": Mixture("iq4_xs", parts=_IQ4),
    "iq3_s": Mixture("iq3_s", parts={"v_proj": (("grouped heads", "q4_k"),)}),
    "iq3_m": Mixture(
        "iq3_s",
        parts={"v_proj": _everywhere("q4_k"), "o_proj": _everywhere("q4_k"), "down_proj": (("first eighth", "q4_k"),)},
    ),
    "iq3_xs": Mixture(
        "iq3_s",
        parts={
            "q_proj": _everywhere("iq3_xxs"),
            "k_proj": _everywhere("iq3_xxs"),
            "v_proj": (("grouped heads", "q4_k"),),
            "gate_proj": (("middle six eighths", "iq3_xxs"),),
            "up_proj": (("middle six eighths", "iq3_xxs"),),
        },
    ),
    "iq3_xxs": Mixture(
        "iq3_xxs",
        output="q5_k",
        embedding="iq3_s",
        parts={
            "q_proj": _everywhere("iq2_s"),
            "k_proj": _everywhere("iq2_s"),
            "v_proj": (("grouped heads", "q4_k"),),
            "o_proj": _everywhere("iq3_s"),
        },
    ),
    "iq2_m": _small("iq2_s", kept="iq3_s", embedding="iq3_s", o="iq3_s"),
    "iq2_s": _small("iq2_xs", kept="iq3_s", embedding="iq3_s", o="iq3_s"),
    "iq2_xs": _small("iq2_xs", kept="q2_k", embedding="q2_k"),
    "iq2_xxs": _small("iq2_xxs", kept="q2_k", embedding="q2_k"),
    "iq1_m": _small("iq1_m", kept="q2_k", embedding="q2_k", o="iq2_xxs"),
    "iq1_s": _small("iq1_s", kept="q2_k", embedding="q2_k", o="iq2_xxs"),
    "tq1_0": Mixture("tq1_0", embedding="q4_k"),
    "tq2_0": Mixture("tq2_0", embedding="q4_k"),
}
"""File type of llama.cpp → its mixture."""

_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "tq1_0": "q4_0", "tq2_0": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_FALLBACK |= dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl")
_GROUPED_HEADS = 4
_OF_70B = {"q3_k": "q5_k", "q4_k": "q5_k"}
_LAYERS_OF_70B = 80


def stored_type(name: str, shape: Sequence[int], *, quantization: str, dtype: str, layers: int, tied: bool, groups: int = 1) -> str:
    """The ggml type in which llama.cpp stores a weight of a Llama-like model.

    name: in transformers. dtype: ggml's word for the model's own (f32, f16, bf16), taken by matrices that are not quantized;
    norms and biases are always f32. groups: query heads that share a KV head.

    Raises:
        UnsupportedError: a quantization whose mixture is not known here.
    """
    if len(shape) == 1:
        return "f32"
    if quantization == "none":
        return dtype
    if quantization not in MIXTURES:
        raise UnsupportedError(
            f"how llama.cpp stores quantization {quantization!r} is not known here", f"use one of: none, {', '.join(MIXTURES)}"
        )
    mixture, columns = MIXTURES[quantization], shape[-1]
    if name == ("model.embed_tokens.weight" if tied else "lm_head.weight"):
        chosen = mixture.output if columns % BLOCKS[mixture.usual][0] == 0 else "q8_0"
    elif name == "model.embed_tokens.weight":
        chosen = mixture.embedding or mixture.usual
    else:
        chosen = _of_layer(name, mixture, layers, groups)
    if columns % BLOCKS[chosen][0]:
        chosen = _FALLBACK.get(chosen, "f16")
    return chosen if columns % BLOCKS[chosen][0] == 0 else "f16"


def _of_layer(name: str, mixture: Mixture, layers: int, groups: int) -> str:
    layer, part = int(name.split(".")[2]), name.split(".")[-2]
    rules = mixture.parts.get(part, ())
    chosen = next((kind for where, kind in rules if _holds(where, layer, layers, groups)), mixture.usual)
    # With 80 layers and 8 query heads per KV head v_proj is an eighth of q_proj, and gets a wider type.
    if part == "v_proj" and layers == _LAYERS_OF_70B and groups > 1:
        return _OF_70B.get(chosen, chosen)
    return chosen


def _holds(where: str, layer: int, layers: int, groups: int) -> bool:
    eighth = layers // 8
    last = 7 * layers // 8
    return {
        "everywhere": True,
        "grouped heads": groups >= _GROUPED_HEADS,
        "first two": layer < 2,  # noqa: PLR2004 - two
        "first four": layer < 4,  # noqa: PLR2004 - four
        "first eighth": layer < eighth,
        "first sixteenth": layer < layers // 16,
        "middle six eighths": eighth <= layer < last,
        "every third and the ends": layer < eighth or layer >= last or (layer - eighth) % 3 == 2,  # noqa: PLR2004 - the third
    }[where]


def type_bytes(ggml_type: str, elements: int) -> int:
    """Bytes of ``elements`` weights in whole blocks, scales included."""
    block, size = BLOCKS[ggml_type]
    return elements // block * size


def block_elements(ggml_type: str) -> int:
    """Elements of a block; 1 where nothing is packed."""
    return BLOCKS[ggml_type][0]
