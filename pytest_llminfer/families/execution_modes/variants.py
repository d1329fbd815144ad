"""The same cell started otherwise: a smaller pool, other chunks, no graphs, a cache of fewer bits. Each must give the same answers.

A variant is an engine of its own. On a processor it runs beside the cell's; accelerators hold one at a time, so that there the
cell's engine ends first, and is loaded again when the variants are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.errors import EngineError, UnsupportedError
from pytest_llminfer.families.execution_modes.texts import continued, open_texts, resynchronised
from pytest_llminfer.families.tokens.observe import MAX_TOKENS, TOP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.generation import Generation, Scores
    from pytest_llminfer.observations.kv_cache import CacheCounters, KVPool

WIDE_PROMPTS = 32
"""For a cache of fewer bits: where it does harm it does so to a few tokens, which eight prompts may not have."""
LONG_TOKENS, LONG_PROMPTS, LONG_ANSWER = 16_384, 8, 48
"""A cache of fp8 may hold at a thousand tokens and lose the text at 16,000 (docs/methods.md#quantized-caches)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the greedy prompts need of a pool.

    Attributes:
        prompt: Tokens of the longest prompt.
        answer: Tokens of the longest answer.
        cell_block: Tokens of a block in the cell's own pool.
    """

    prompt: int
    answer: int
    cell_block: int

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its answer."""
        return self.prompt + self.answer

    @property
    def block(self) -> int:
        """Tokens of a block of a tiny pool. vLLM's on a processor hold 128, and with them most answers need no further one."""
        return min(self.cell_block, 32)

    @property
    def tiny_tokens(self) -> int:
        """Room for two prompts, and not for both of their answers: whenever requests wait, one of two loses its cache."""
        return self.tiny_blocks * self.block

    @property
    def tiny_blocks(self) -> int:
        """The same in whole blocks."""
        return max(math.ceil(self.longest / self.block), 2 * math.ceil(self.prompt / self.block))


Arguments = Mapping[str, Any] | Callable[[Sizes], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One other way to start a cell.

    Attributes:
        name: As in the test ids.
        arguments: Engine to its engine arguments, or to a function that makes them from the :class:`Sizes`; engines that are not
            named lack this variant.
        kv_dtype: dtype of the variant's KV cache; empty for the cell's.
        variables: Variables of the worker's environment; empty for none.
        gpu: Whether the variant changes something only on a GPU.
        preempts: Whether some requests must lose their cache.
        invariant: The engine's promise that a batch changes nothing, bit by bit: a variable or an engine argument; empty where it
            makes none.
    """

    name: str
    arguments: Mapping[str, Arguments]
    kv_dtype: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    gpu: bool = False
    preempts: bool = False
    invariant: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class VariantAnswers:
    """What a variant answered, and what the cell itself did.

    Attributes:
        batched: The variant's answers to the greedy prompts in one request; to more prompts where its cache has fewer bits.
        reference: The cell's answers to the same prompts.
        alone: The variant's answers, one prompt a request; empty unless it is an invariant variant.
        teacher_forced: Number of a prompt to the variant's scores of it, as :func:`resynchronised` gives them.
        open_ended: The variant's continuations of ``open_texts``; empty where its cache has fewer bits.
        counters: What the variant's engine counted; None where it does not say.
        pool: The variant's KV pool; None where the engine does not describe it.
        long: The variant's answers to long prompts; empty unless a cache of fewer bits is tested on a GPU.
        long_reference: The cell's answers to the same long prompts; empty likewise.
    """

    batched: list[Generation]
    reference: list[Generation]
    alone: list[Generation]
    teacher_forced: Mapping[int, Scores]
    open_ended: list[Generation]
    counters: CacheCounters | None
    pool: KVPool | None
    long: list[Generation]
    long_reference: list[Generation]


class KVVariants:
    """Starts variants of one cell, each once, and keeps their answers."""

    def __init__(self, engine: Engine, greedy: Greedy, launch: Callable[..., Engine], *, asked_for: bool) -> None:
        self._engine, self._greedy, self._launch, self._asked_for = engine, greedy, launch, asked_for
        self._on_gpu = engine.info.device != "cpu"
        self._kept: dict[str, VariantAnswers] = {}
        self._references: dict[str, list[Generation]] = {}
        self._block = engine.kv_pool().block_size if engine.supports("kv_pool") else 1
        self._aside = False

    def ask(self, variant: Variant) -> VariantAnswers:
        """The answers of a variant, which is started now unless it was before.

        Raises:
            UnsupportedError: variants were not asked for, or this one means nothing on this engine or device.
        """
        spec = self._engine.spec
        if variant.arguments.get(spec.engine) is None:
            raise UnsupportedError(
                f"{variant} has no engine arguments for {spec.engine}",
                f"engines that have them: {', '.join(variant.arguments)}",
            )
        if variant.gpu and not self._on_gpu:
            raise UnsupportedError(f"{variant} changes nothing without a GPU", "run it on a machine with one")
        if variant.kv_dtype and spec.kv_dtype not in {"auto", spec.dtype}:
            raise UnsupportedError(f"{spec} has a cache of {spec.kv_dtype} already", f"use kv_dtype=auto or kv_dtype={spec.dtype}")
        if not self._asked_for:
            raise UnsupportedError(f"{variant} needs an engine of its own", "--kv-variants starts it")
        if variant.name not in self._kept:
            self._kept[variant.name] = self._started(variant)
        return self._kept[variant.name]

    def long(self, variant: Variant) -> VariantAnswers:
        """The same, with answers to long prompts.

        Raises:
            UnsupportedError: there is no GPU, or the model's sequences are shorter.
        """
        if not self._on_gpu:
            raise UnsupportedError(f"{LONG_TOKENS:,} tokens of context need a GPU", "run it on a machine with one")
        if not self._holds_long():
            raise UnsupportedError(
                f"{self._engine.model.name} has no room for {LONG_TOKENS:,} tokens of context",
                "give a model with longer sequences, or allow them by the engine's arguments",
            )
        return self.ask(variant)

    def _started(self, variant: Variant) -> VariantAnswers:
        greedy, cell = self._greedy, self._engine
        wide, reference = self._wide() if variant.kv_dtype else (greedy.prompts, greedy.batched)
        long, long_reference = self._long() if variant.kv_dtype else ([], [])
        if self._on_gpu and not self._aside:
            if cell.spec.kv_dtype in {"auto", cell.spec.dtype}:
                # Asked for while the cell's engine is there: caches of fewer bits are compared with it, and loading it takes long.
                self._wide()
                self._long()
            cell.close()
            self._aside = True
        spec = replace(cell.spec, kv_dtype=variant.kv_dtype or cell.spec.kv_dtype)
        arguments = variant.arguments[spec.engine]
        own = arguments(self._sizes()) if callable(arguments) else arguments
        engine = self._launch(spec, cell.model, {**cell.engine_args, **own}, dict(variant.variables))
        try:
            _check_in_force(engine, variant, own)
            batched = _answers(engine, wide, MAX_TOKENS)
            return VariantAnswers(
                batched=batched,
                reference=reference,
                alone=[_answers(engine, [prompt], MAX_TOKENS)[0] for prompt in wide] if variant.invariant else [],
                teacher_forced={} if variant.kv_dtype else resynchronised(engine, wide, batched, reference, greedy.noise),
                open_ended=[] if variant.kv_dtype else continued(engine, open_texts(cell.model)),
                counters=engine.cache_counters() if engine.supports("cache_counters") else None,
                pool=engine.kv_pool() if engine.supports("kv_pool") else None,
                long=_answers(engine, long, LONG_ANSWER) if long else [],
                long_reference=long_reference,
            )
        finally:
            engine.close()

    def _wide(self) -> tuple[list[list[int]], list[Generation]]:
        """The prompts for caches of fewer bits, and what the cell answers to them."""
        prompts = self._engine.model.prompts(WIDE_PROMPTS)
        return prompts, self._reference("wide", prompts, MAX_TOKENS)

    def _long(self) -> tuple[list[list[int]], list[Generation]]:
        """The same of long ones; none where nothing could be asked."""
        prompts = long_prompts(self._engine.model) if self._on_gpu and self._holds_long() else []
        return prompts, self._reference("long", prompts, LONG_ANSWER) if prompts else []

    def _reference(self, name: str, prompts: Sequence[list[int]], max_tokens: int) -> list[Generation]:
        """What the cell itself answers, asked once."""
        if name not in self._references:
            self._restore()
            self._references[name] = _answers(self._engine, prompts, max_tokens)
        return self._references[name]

    def _sizes(self) -> Sizes:
        return Sizes(max(map(len, self._greedy.prompts)), MAX_TOKENS + 2, self._block)

    def _holds_long(self) -> bool:
        engine = self._engine
        longest = engine.model.config.get("max_position_embeddings") or 0
        return bool(longest >= LONG_TOKENS + LONG_ANSWER + 2)

    def _restore(self) -> None:
        if self._aside:
            self._aside = False
            self._engine.restart()

    def close(self) -> None:
        """Load the cell's engine again, if it had to make room."""
        self._restore()


def _check_in_force(engine: Engine, variant: Variant, arguments: Mapping[str, Any]) -> None:
    """Refuse a variant that would compare the cell with itself.

    Raises:
        EngineError: the engine has taken an argument and uses another value.
    """
    resolved = engine.settings()["resolved"]
    for name, value in arguments.items():
        if resolved.get(name, value) != value:
            raise EngineError(f"{variant}: {engine.spec} was given {name}={value!r}, and {resolved[name]!r} is in force")


def _answers(engine: Engine, prompts: Sequence[list[int]], max_tokens: int) -> list[Generation]:
    return engine.generate(prompts, max_tokens=max_tokens, logprobs=TOP)


def long_prompts(model: Model) -> list[list[int]]:
    """Prompts of 16,384 tokens: questions with their solutions, or drawn token ids where there is no tokenizer."""
    if not model.has_tokenizer or model.weights == "dummy":
        return model.sample_prompts(LONG_PROMPTS, LONG_TOKENS)
    problems = load(SYNTHETIC).problems
    ids: list[int] = []
    while len(ids) < LONG_PROMPTS * LONG_TOKENS:
        ids += model.encode("\n\n".join(f"{problem.question}\n{problem.answer}" for problem in problems))
    return [ids[start : start + LONG_TOKENS] for start in range(0, LONG_PROMPTS * LONG_TOKENS, LONG_TOKENS)]
