"""Which part of each weight one rank holds: tensor-parallel shares, pipeline stages, and matrices that engines fuse.

What is dealt to ranks, by engine and linear, is declared in ``shards.toml``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pytest_llminfer.models.shape import ModelShape, WeightShape

_DECLARED = tomllib.loads(Path(__file__).with_name("shards.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class EngineRule:
    """What one engine deals to its ranks; the fields are told in ``shards.toml``."""

    roles: Collection[str]
    plan: Collection[str] = ()
    vocabulary_block: int = 1
    fused: Mapping[str, Collection[str]] = field(default_factory=dict)
    every_stage: Mapping[str, Collection[str]] = field(default_factory=dict)
    tied_stages: bool = True


RULES: dict[str, EngineRule] = {engine: EngineRule(**entry) for engine, entry in _DECLARED["engines"].items()}
DEALT: dict[str, str] = _DECLARED["linears"]
"""The last word of a module's name → what of its weight is dealt: outputs, inputs or heads."""

FUSING = tuple(engine for engine, rule in RULES.items() if rule.fused)
"""Engines that hold q, k and v of a layer as one matrix, gate and up as another, and fill the vocabulary up to whole blocks."""

SHARDED: dict[str, frozenset[str]] = {engine: frozenset(rule.roles) for engine, rule in RULES.items()}
"""Engine → the roles of weights of which each rank of a tensor-parallel group holds a part; the others are held by all."""


def sharded_roles(shape: ModelShape, engine: str, plan: Collection[str] = ()) -> frozenset[str]:
    """Roles of which a rank holds a part. plan: the modules that the engine says it shards.

    The plan is asked only about embedding and output matrix, which versions of one engine treat differently: attention and mlp
    must be sharded whatever it says.

    Raises:
        UnsupportedError: an engine whose shares are not known here.
    """
    if engine not in RULES:
        raise UnsupportedError(f"how {engine} spreads weights is not known here (known: {', '.join(RULES)})")
    planned = {weight.role for weight in shape.parameters() if weight.name.removesuffix(".weight") in plan}
    return SHARDED[engine] | (planned & frozenset(RULES[engine].plan))


def rank_part(
    weight: WeightShape, shape: ModelShape, *, engine: str, tp: int, sharded: Collection[str], rank: int = 0
) -> WeightShape:
    """The part of a weight that one of ``tp`` ranks holds, the vocabulary filled up first where the engine does that.

    What does not divide by the ranks is dealt in equal parts rounded up: the first rank has a whole one, the last what is left.
    """
    sizes = list(weight.shape)
    if weight.role in ("embedding", "lm_head") and engine in RULES:
        block = RULES[engine].vocabulary_block
        sizes[0] = -(-sizes[0] // block) * block
    part = weight.name.split(".")[-2] if "." in weight.name else ""
    dealt = DEALT.get(part) if tp > 1 and weight.role in sharded else None
    if dealt is None or (weight.role == "bias" and dealt == "inputs"):
        return replace(weight, shape=tuple(sizes))
    # Which dimension counts the inputs: GPT-2 stores (in, out), all others (out, in).
    inputs = 0 if weight.transposed else len(sizes) - 1
    outputs = len(sizes) - 1 - inputs if len(sizes) > 1 else 0
    if dealt == "heads":
        sizes[outputs] = sizes[outputs] * max(1, shape.kv_heads // tp) // shape.kv_heads
    else:
        dimension = inputs if dealt == "inputs" else outputs
        sizes[dimension] = _share(sizes[dimension], tp, rank)
    return replace(weight, shape=tuple(sizes))


def _share(size: int, tp: int, rank: int) -> int:
    whole = -(-size // tp)
    return min(whole, max(size - rank * whole, 0))


def stages_of(weight: WeightShape, shape: ModelShape, pp: int, engine: str) -> tuple[int, ...]:
    """The pipeline stages that hold a weight: layers are dealt evenly, the embedding is on the first stage, final norm and
    output matrix on the last, or where the engine has them.

    Raises:
        UnsupportedError: layers that do not divide by the stages, or a tied embedding whose stages are not known.
    """
    rule = RULES.get(engine)
    if pp > 1 and rule is not None and shape.tied and not rule.tied_stages:
        raise UnsupportedError(
            f"on which stages of pp={pp} {engine} keeps an embedding that is the output matrix is not known here"
        )
    if shape.layers % pp:
        raise UnsupportedError(f"{shape.layers} layers do not divide by pp={pp}: which stage gets more is the engine's choice")
    numbers = [int(word) for word in weight.name.split(".") if word.isdigit()]
    if numbers:
        return (numbers[0] * pp // shape.layers,)
    if weight.role in ("embedding", "position"):
        return tuple(sorted({0, pp - 1})) if shape.tied and weight.role == "embedding" else (0,)
    if rule is not None and weight.role in rule.every_stage.get(shape.architecture, ()):
        return tuple(range(pp))
    return (pp - 1,)


def fused(weights: Iterable[WeightShape], engine: str) -> tuple[WeightShape, ...]:
    """The weights with those that the engine multiplies together in one matrix, under its name."""
    held: dict[str, WeightShape] = {}
    for weight in weights:
        name = _fused_name(weight.name, RULES[engine].fused)
        rows, *columns = weight.shape
        before = held[name].shape[0] if name in held else 0
        held[name] = replace(weight, name=name, shape=(before + rows, *columns))
    return tuple(held.values())


def _fused_name(name: str, wholes: Mapping[str, Collection[str]]) -> str:
    module, _, rest = name.rpartition(".")
    prefix, _, part = module.rpartition(".")
    whole = next((whole for whole, parts in wholes.items() if part in parts), part)
    return f"{prefix}.{whole}.{rest}" if prefix else name
