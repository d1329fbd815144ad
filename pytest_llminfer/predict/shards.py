"""Which part of each weight one rank holds: tensor-parallel shares, pipeline stages, and matrices that engines fuse.

``shards.toml`` declares how each linear is split, an engine's profile which roles it splits (``rules.Splitting``).
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.predict.rules import storage_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pytest_llminfer.models.shape import ModelShape, WeightShape
    from pytest_llminfer.predict.rules import EngineRules, Splitting

_DECLARED = tomllib.loads(Path(__file__).with_name("shards.toml").read_text(encoding="utf-8"))


DEALT: dict[str, str] = _DECLARED["linears"]
"""Last word of a module's name → what its weight is split by: outputs, inputs or heads."""


def splitting_of(engine: EngineRules) -> Splitting:
    """How an engine splits a model over ranks.

    Raises:
        UnsupportedError: its profile does not say.
    """
    if engine.splitting is None:
        raise engine.unsaid("splitting", f"how {engine.name} splits a model over ranks")
    return engine.splitting


def sharded_roles(shape: ModelShape, engine: EngineRules, plan: Collection[str] = ()) -> frozenset[str]:
    """Roles of which a rank of a tensor-parallel group holds a part. plan: the modules that the engine says it shards.

    The plan is asked only about the roles that the profile names for it, which versions of one engine treat differently: attention
    and mlp must be sharded whatever it says.

    Raises:
        UnsupportedError: an engine whose shares are not known here, or that has no tensor parallelism.
    """
    splitting = splitting_of(engine)
    if not splitting.roles:
        raise UnsupportedError(f"{engine.name} does not split a model over tensor-parallel ranks", "use tp=1")
    planned = {weight.role for weight in shape.parameters() if weight.name.removesuffix(".weight") in plan}
    return frozenset(splitting.roles) | (planned & frozenset(splitting.plan))


def is_fused(shape: ModelShape, engine: EngineRules) -> bool:
    """Whether the engine holds linears of this architecture as one matrix; those of GPT-2 are one in its files already."""
    return bool(storage_of(engine).fused) and shape.architecture != "gpt2"


def rank_part(
    weight: WeightShape, shape: ModelShape, *, engine: EngineRules, tp: int, sharded: Collection[str], rank: int = 0
) -> WeightShape:
    """The part of a weight that one of ``tp`` ranks holds, the vocabulary filled up first where the engine does that.

    What does not divide by the ranks is split in equal parts rounded up: the first rank has a full one, the last the remainder.
    """
    sizes = list(weight.shape)
    if weight.role in ("embedding", "lm_head"):
        block = storage_of(engine).vocabulary_block
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


def stages_of(weight: WeightShape, shape: ModelShape, pp: int, engine: EngineRules) -> tuple[int, ...]:
    """The pipeline stages that hold a weight: layers are split evenly, the embedding is on the first stage, final norm and output
    matrix on the last, or where the engine has them.

    Raises:
        UnsupportedError: layers that do not divide by the stages, a tied embedding whose stages are not known, or an engine that
        does not say how it splits a model.
    """
    if pp == 1:
        return (0,)
    splitting = splitting_of(engine)
    if shape.tied and not splitting.tied_stages:
        raise UnsupportedError(
            f"on which stages of pp={pp} {engine.name} keeps an embedding that is the output matrix is not known here",
            "use pp=1, or a model with an output matrix of its own",
        )
    if shape.layers % pp:
        raise UnsupportedError(
            f"{shape.layers} layers do not divide by pp={pp}, and which stage gets more is the engine's choice",
            f"use a pp that divides {shape.layers}",
        )
    numbers = [int(word) for word in weight.name.split(".") if word.isdigit()]
    if numbers:
        return (numbers[0] * pp // shape.layers,)
    if weight.role in ("embedding", "position"):
        return tuple(sorted({0, pp - 1})) if shape.tied and weight.role == "embedding" else (0,)
    if weight.role in splitting.every_stage.get(shape.architecture, ()):
        return tuple(range(pp))
    return (pp - 1,)


def fused(weights: Iterable[WeightShape], engine: EngineRules) -> tuple[WeightShape, ...]:
    """The weights with those that the engine multiplies together in one matrix, under its name."""
    held: dict[str, WeightShape] = {}
    for weight in weights:
        name = _fused_name(weight.name, storage_of(engine).fused)
        rows, *columns = weight.shape
        before = held[name].shape[0] if name in held else 0
        held[name] = replace(weight, name=name, shape=(before + rows, *columns))
    return tuple(held.values())


def _fused_name(name: str, wholes: Mapping[str, Collection[str]]) -> str:
    module, _, rest = name.rpartition(".")
    prefix, _, part = module.rpartition(".")
    whole = next((whole for whole, parts in wholes.items() if part in parts), part)
    return f"{prefix}.{whole}.{rest}" if prefix else name
