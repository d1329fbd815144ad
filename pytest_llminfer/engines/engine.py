"""An engine as tests see it: typed questions, typed answers, one worker behind them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llminfer.engines.capabilities import need
from pytest_llminfer.engines.probes import locate
from pytest_llminfer.engines.replica import MAX_DEATHS, Launch, Replica
from pytest_llminfer.engines.replicas import SharedProgress, at_once, collect, deal, first_of_equal, of_the_fullest
from pytest_llminfer.engines.timing import TimedQuestions
from pytest_llminfer.errors import EngineError, UnsupportedError
from pytest_llminfer.observations.cache_paths import CachePathComparisons
from pytest_llminfer.observations.engine import EngineInfo, Rank
from pytest_llminfer.observations.generation import Generation, Sampling, Scores
from pytest_llminfer.observations.kv_cache import CacheCounters, CacheReport, KVPool
from pytest_llminfer.observations.layout import Layout
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.worker.protocol.cache_paths import CachePath

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import numpy as np

    Prompt = Sequence[int] | str | Sequence[Mapping[str, str]]

__all__ = ["MAX_DEATHS", "Engine", "Launch"]
T = TypeVar("T")
_ON_ALL = ("run", "layout", "memory", "ranks", "kv_pool", "reset_prefix_cache")
"""Requests to every replica, since one's answer need not hold for the others."""


class Engine(TimedQuestions):
    """One loaded cell: typed requests to its workers. No framework is imported here.

    With several replicas prompts are split over all of them, and answers come back in order. launches: one a replica.
    on_load: called with the engine and what it loaded after every load of a replica: the first, a restart, one after a death.

    Any request may raise UnsupportedError (a capability that ``info`` does not list), BadInputError (the worker refuses the
    arguments), OutOfMemoryError, EngineDiedError, EngineHungError, or EngineError for any other failure of the engine.
    """

    def __init__(self, *launches: Launch, on_load: Callable[[Engine, EngineInfo], None] | None = None) -> None:
        self.spec, self.model = launches[0].spec, launches[0].model
        self._launch, self._on_load = launches[0], on_load
        self._answers: dict[tuple[Any, ...], Any] = {}
        self._preparations: list[tuple[Callable[..., Any] | str, dict[str, Any]]] = []
        self._replicas = [Replica(launch, self._loaded(number)) for number, launch in enumerate(launches)]
        try:
            at_once([replica.start for replica in self._replicas])
        except BaseException:
            self.close()
            raise

    def _loaded(self, number: int) -> Callable[[], None]:
        def loaded() -> None:
            replica = self._replicas[number]
            if self._on_load is not None:
                self._on_load(self, replica.info)
            for probe, arguments in self._preparations:
                path, function = locate(probe)
                replica.ask("run", {"path": path, "function": function, "arguments": arguments})

        return loaded

    @property
    def info(self) -> EngineInfo:
        """What was loaded, of the first replica; the devices of all."""
        count = sum(replica.info.device_count for replica in self._replicas)
        return replace(self._replicas[0].info, device_count=count)

    @property
    def loads(self) -> int:
        """Loads of all replicas together, reloads included."""
        return sum(replica.loads for replica in self._replicas)

    def _need(self, capability: str) -> None:
        need(self, capability, f"{self.spec.engine} cannot answer {capability!r}")

    def _ask(self, method: str, *, capability: str = "", **params: Any) -> Any:
        """The first replica's answer; a list of all answers where every replica is asked."""
        self._need(capability or method)
        if method in _ON_ALL:
            return at_once([partial(replica.ask, method, params) for replica in self._replicas])
        return self._replicas[0].ask(method, params)

    def _deal(
        self, method: str, items: Sequence[Any], *, field: str, answer: str, capability: str = "", **params: Any
    ) -> list[Any]:
        """One answer an item, in order; each replica computes its share."""
        self._need(capability or method)
        shares = deal(len(items), len(self._replicas))
        progress = self._launch.progress
        shared = SharedProgress(progress, len(shares)) if progress is not None and len(shares) > 1 else None
        actions = [
            partial(
                replica.ask, method, {field: [items[index] for index in share], **params}, shared.of(number) if shared else None
            )
            for number, (replica, share) in enumerate(zip(self._replicas, shares, strict=True))
            if share or number == 0
        ]
        answers = [reply[answer] for reply in at_once(actions)]
        return collect(shares[: len(answers)], answers, whose=str(self.spec))

    @property
    def idle_bytes(self) -> int | None:
        """Bytes in use on the cell's GPUs, by all processes, when the cell got them; None on a CPU, or where it is not known."""
        return self._launch.lease.idle_bytes if self._launch.lease is not None else None

    @property
    def engine_args(self) -> Mapping[str, Any]:
        """What the engine was given beside its cell and model."""
        return self._launch.engine_args

    @property
    def has_plain_weights(self) -> bool:
        """Whether weights and KV cache have the cell's dtype, so that another engine's record may be the reference."""
        spec, info = self.spec, self.info
        return spec.weights == "real" and spec.quantization == "none" and info.kv_dtype == info.dtype and not spec.is_remote

    def once(self, ask: Callable[..., T], *arguments: Hashable) -> T:
        """What ``ask(engine, *arguments)`` returned the first time, so that several tests of a cell share the same answers."""
        asked = (ask, arguments)
        if asked not in self._answers:
            self._answers[asked] = ask(self, *arguments)
        return self._answers[asked]  # type: ignore[no-any-return]

    def supports(self, capability: str) -> bool:
        """Whether the engine answers this request, by its name in ``EngineInfo.capabilities``."""
        return capability in self._replicas[0].info.capabilities

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        max_tokens: int = 64,
        ignore_eos: bool = False,
        logprobs: int = 0,
        cache_path: str = "engine",
    ) -> list[Generation]:
        """One answer a prompt, in order; prompts are token ids, text, or conversations (lists of ``{"role", "content"}``).

        sampling: every field of it counts; without it decoding is greedy with ``max_tokens`` and ``ignore_eos``.
        cache_path: ``engine``, ``loop`` (a hand-written loop over the cache) or ``no_cache`` (every prefix recomputed).
        logprobs: how many of the most likely tokens of each step come with their log-probabilities; 0 for none.
        """
        chosen = sampling or Sampling(max_tokens=max_tokens, ignore_eos=ignore_eos)
        if logprobs:
            self._need("generate:logprobs")
        outputs = self._deal(
            "generate",
            [self._prepared(prompt) for prompt in prompts],
            field="prompts",
            answer="outputs",
            capability="generate" if cache_path == "engine" else f"generate:{cache_path}",
            sampling=chosen.to_dict(),
            logprobs=logprobs,
            cache_path=cache_path,
        )
        return [self._with_text(Generation.from_message(output)) for output in outputs]

    def _prepared(self, prompt: Prompt) -> list[Any]:
        """Token ids; a conversation as it is where the engine applies its own chat template."""
        if isinstance(prompt, str):
            return self.model.encode(prompt)
        prepared: list[Any] = list(prompt)
        if prepared and isinstance(prepared[0], dict):
            return prepared if self.supports("generate:messages") else self.model.chat(prepared)
        return prepared

    def _with_text(self, generation: Generation) -> Generation:
        known = generation.text is not None or not self.model.has_tokenizer
        return generation if known else replace(generation, text=self.model.decode(generation.token_ids))

    def score(self, sequences: Sequence[Sequence[int]], *, cache_path: str = "prefill") -> list[np.ndarray]:
        """Per sequence the log-probabilities (T-1,) in nats of its tokens, each given those before it."""
        capability = "score" if cache_path == "prefill" else f"score:{cache_path}"
        items = [list(ids) for ids in sequences]
        return self._deal("score", items, field="sequences", answer="logprobs", capability=capability, cache_path=cache_path)

    def score_top(self, sequences: Sequence[Sequence[int]], *, top: int, last: int) -> list[Scores]:
        """What the engine predicts for the ``last`` tokens of each sequence, with the ``top`` most likely tokens of each position.

        By prefill, several sequences at once where the engine can. Every sequence has at least ``last + 2`` tokens.
        """
        answers = self._deal("score_top", [list(ids) for ids in sequences], field="sequences", answer="scores", top=top, last=last)
        return [Scores.from_message(answer) for answer in answers]

    def score_listed(self, sequences: Sequence[Sequence[int]], listed: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per sequence float64 (T, k) in nats, of ``listed`` tokens (T, k) at its last T positions, in a wider dtype."""
        items = [{"token_ids": list(ids), "listed": tokens} for ids, tokens in zip(sequences, listed, strict=True)]
        return self._deal("score_listed", items, field="sequences", answer="logprobs")

    def layout(self) -> Layout:
        """Every stored tensor of the model, tied ones once, and which names are tied.

        Raises:
            UnsupportedError: the model is split over ranks, none of which holds all of it.
        """
        if len(ranks := self.rank_layouts()) > 1:
            raise UnsupportedError(f"{self.spec}: no rank holds the whole model", "use tp=1 and pp=1, or ask for rank_layouts()")
        return ranks[0]

    def rank_layouts(self) -> tuple[Layout, ...]:
        """What each rank of a replica stores, by pipeline and tensor rank; an EngineError where replicas differ."""
        answer, other = first_of_equal(self._ask("layout"))
        if other is not None:
            raise EngineError(f"{self.spec}: replica {other} stores its parameters otherwise than replica 0")
        return Layout.of_ranks(answer)

    def memory(self, *, reset_peak: bool = False) -> MemoryReport:
        """Bytes by category, of the replica with the most; ``reset_peak`` resets the run peak after this reading."""
        return MemoryReport.from_message(of_the_fullest(self._ask("memory", reset_peak=reset_peak)))

    def kv_cache(self, prompt: Sequence[int], *, extend: int) -> CacheReport:
        """The KV cache after a prompt, and after ``extend`` more tokens decoded greedily."""
        return CacheReport.from_message(self._ask("kv_cache", prompt=list(prompt), extend=extend))

    def compare_cache_paths(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        candidate: CachePath,
        reference: CachePath | None = None,
        config: Mapping[str, Any] | None = None,
        dtype: str = "",
        seed: int = 0,
    ) -> CachePathComparisons:
        """What two cache paths make of the same tokens; the reference is prefill alone unless another is given.

        config: of a model with random weights from ``seed`` in ``dtype``, made once and kept; None for the served model.
        """
        made: Any = {"config": config and dict(config), "dtype": dtype, "seed": seed, "sequences": [list(ids) for ids in sequences]}
        made |= {"candidate": candidate.to_dict(), "reference": (reference or CachePath()).to_dict()}
        return CachePathComparisons.from_message(self._ask("compare_cache_paths", **made))

    def kv_pool(self) -> KVPool:
        """The paged KV cache of a replica: that with the fewest blocks, which is the one that fills first."""
        return KVPool.from_message(min(self._ask("kv_pool"), key=lambda answer: int(answer["num_blocks"])))

    def cache_counters(self) -> CacheCounters:
        """Preemptions and prefix-cache hits of the first replica since it was loaded."""
        return CacheCounters.from_message(self._ask("cache_counters"))

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache of every replica."""
        self._ask("reset_prefix_cache")

    def ranks(self) -> tuple[Rank, ...]:
        """Every process that holds a part of the model, in all replicas."""
        answers = self._ask("ranks")
        if len(answers) > 1:
            answers = [{"ranks": [rank | {"dp_rank": number} for rank in answer["ranks"]]} for number, answer in enumerate(answers)]
        return tuple(Rank.from_message(rank) for answer in answers for rank in answer["ranks"])

    def settings(self) -> dict[str, Any]:
        """The resolved configuration and the engine's own defaults."""
        return dict(self._ask("settings"))

    def talk(self, requests: Sequence[Mapping[str, Any]], *, concurrency: int = 1) -> list[dict[str, Any]]:
        """What a served engine answers over HTTP, one answer a request, ``concurrency`` of them under way at a time."""
        return list(self._ask("talk", requests=[dict(request) for request in requests], concurrency=concurrency)["answers"])

    def stop_server(self) -> dict[str, Any]:
        """Stop the engine's own server; the fields of ``Backend.stop``. The next request starts it again."""
        return dict(self._ask("stop", capability="serving:stop"))

    def run(self, probe: Callable[..., Any] | str, /, **arguments: Any) -> Any:
        """What ``probe`` returns, called in the worker with the live model and ``arguments``; in every replica, the first answers.

        probe: a function at the top level of a file that the engine's interpreter can import, or ``"path.py::function"``.
        Arguments and result are plain data and arrays.
        """
        path, function = locate(probe)
        return self._ask("run", path=path, function=function, arguments=arguments)[0]["result"]

    def prepare(self, probe: Callable[..., Any] | str, /, **arguments: Any) -> None:
        """:meth:`run` a set-up of the live model now, and again after every reload of the engine."""
        self.run(probe, **arguments)
        self._preparations.append((probe, arguments))

    def restart(self) -> None:
        """End the workers and reload the engine, with everything as it was first given or prepared."""
        at_once([replica.restart for replica in self._replicas])

    def close(self) -> None:
        """End the workers and all their processes, which frees the devices."""
        for replica in self._replicas:
            replica.close()
        if self._launch.lease is not None:
            self._launch.lease.release()
