"""Which part of each weight one rank holds: tensor-parallel shares, pipeline stages, and matrices that engines fuse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_llminfer.models.shape import ModelShape, WeightShape

FUSING = ("vllm", "sglang")
"""Engines that hold q, k and v of a layer as one matrix, gate and up as another, and fill the vocabulary up to whole blocks."""
VOCABULARY_BLOCK = 64

SHARDED: dict[str, frozenset[str]] = {
    "sglang": frozenset({"embedding", "attention", "mlp", "bias", "lm_head"}),
    "transformers": frozenset({"attention", "mlp", "bias"}),
    "vllm": frozenset({"embedding", "attention", "mlp", "bias", "lm_head"}),
}
"""Engine → the roles of weights of which each rank of a tensor-parallel group holds a part; the others are held by all."""

_BY_INPUTS = ("o_proj", "down_proj", "c_proj")
"""Linears whose inputs are dealt to the ranks; their bias is added once, and held by all."""
_KV = ("k_proj", "v_proj")
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def sharded_roles(shape: ModelShape, engine: str, plan: Collection[str] = ()) -> frozenset[str]:
    """Roles of which a rank holds a part. plan: the modules that the engine says it shards.

    The plan is asked only about embedding and output matrix, which versions of one engine treat differently: attention and mlp
    must be sharded whatever it says.

    Raises:
        UnsupportedError: an engine whose shares are not known here.
    """
    if engine not in SHARDED:
        raise UnsupportedError(f"how {engine} spreads weights is not known here (known: {', '.join(SHARDED)})")
    ends = {weight.role for weight in shape.parameters() if weight.name.removesuffix(".weight") in plan}
    return SHARDED[engine] | (ends & {"embedding", "lm_head"})


def rank_part(weight: WeightShape, shape: ModelShape, *, engine: str, tp: int, sharded: Collection[str]) -> WeightShape:
    """The part of a weight that each of ``tp`` ranks holds, the vocabulary filled up first where the engine does that."""
    sizes = list(weight.shape)
    if weight.role in ("embedding", "lm_head") and engine in FUSING:
        sizes[0] = -(-sizes[0] // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    part = weight.name.split(".")[-2] if "." in weight.name else ""
    if tp > 1 and weight.role in sharded and not (weight.role == "bias" and part in _BY_INPUTS):
        # Which dimension counts the inputs: GPT-2 stores (in, out), all others (out, in).
        inputs = 0 if weight.transposed else len(sizes) - 1
        outputs = len(sizes) - 1 - inputs if len(sizes) > 1 else 0
        if part in _BY_INPUTS:
            sizes[inputs] = _share(sizes[inputs], tp)
        elif part in _KV:
            # Each rank has at least one KV head: with more ranks than heads they are held several times.
            sizes[outputs] = sizes[outputs] * max(1, shape.kv_heads // tp) // shape.kv_heads
        else:
            sizes[outputs] = _share(sizes[outputs], tp)
    return replace(weight, shape=tuple(sizes))


def _share(size: int, tp: int) -> int:
    return -(-size // tp)


def stages_of(weight: WeightShape, shape: ModelShape, pp: int) -> tuple[int, ...]:
    """The pipeline stages that hold a weight: layers are dealt evenly, the embedding is on the first stage, final norm and
    output matrix on the last.

    Raises:
        UnsupportedError: layers that do not divide by the stages.
    """
    if shape.layers % pp:
        raise UnsupportedError(f"{shape.layers} layers do not divide by pp={pp}: which stage gets more is the engine's choice")
    numbers = [int(word) for word in weight.name.split(".") if word.isdigit()]
    if numbers:
        return (numbers[0] * pp // shape.layers,)
    if weight.role in ("embedding", "position"):
        return tuple(sorted({0, pp - 1})) if shape.tied and weight.role == "embedding" else (0,)
    return (pp - 1,)


def fused(weights: Iterable[WeightShape]) -> tuple[WeightShape, ...]:
    """The weights with those that are multiplied together in one matrix, under its name."""
    held: dict[str, WeightShape] = {}
    for weight in weights:
        name = _fused_name(weight.name)
        rows, *columns = weight.shape
        before = held[name].shape[0] if name in held else 0
        held[name] = replace(weight, name=name, shape=(before + rows, *columns))
    return tuple(held.values())


def _fused_name(name: str) -> str:
    module, _, rest = name.rpartition(".")
    prefix, _, part = module.rpartition(".")
    whole = next((whole for whole, parts in _FUSED.items() if part in parts), part)
    return f"{prefix}.{whole}.{rest}" if prefix else name
