"""What every engine answers: the contract of a backend, and the shapes of its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec

Message = dict[str, Any]
"""Plain data: JSON values and NumPy arrays. No tuples as keys, no NumPy scalars."""


class Progress(Protocol):
    """Called with the progress of long work; every call also proves that the worker is alive."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``phase``: what is being done ("loading", "generating"); ``done`` of ``total`` steps."""


class Backend(Protocol):
    """One engine replica (``spec.replica``), loaded once. Requests come one at a time, in keyword arguments, and are answered with
    a Message.

    A request that the engine cannot answer raises ``UnsupportedError`` with the reason; its name is then missing from
    ``capabilities`` too. Field names of every answer are those of the classes in ``pytest_llminfer.observations``.
    When a process of the engine has died, any request raises ``EngineDiedError`` that names it; too little memory raises
    ``OutOfMemoryError``. Processes that the engine starts stay in the worker's process group, killed as one.
    """

    capabilities: frozenset[str]
    """Names of the requests that are answered: ``generate``, ``generate:loop``, ``generate:no_cache``, ``generate:messages``,
    ``generate:logprobs``, ``score``, ``score:decode``, ``score_top``, ``layout``, ``memory``, ``kv_cache``, ``kv_pool``, ``ranks``,
    ``settings``, ``calibrate``, ``reference_step``, ``trace``, ``run``, ``compare_cache_paths``, ``cache_counters``,
    ``reset_prefix_cache``; of a server also ``talk`` and ``serving:stop``. Known after ``load``."""

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        """Remember the arguments. ``model_path``: a folder with config.json, or the id of a model that the engine fetches."""

    def warm(self) -> None:
        """Import the engine, and touch no device: asked of a worker that was started ahead, before its ``load``."""

    def load(self) -> Message:
        """Load the model; the fields of ``EngineInfo``."""

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """``{"outputs": [fields of Generation, …]}``, one a prompt, in order.

        sampling: every field of ``Sampling``. logprobs: how many top log-probabilities a step, 0 for none.
        cache path: ``engine`` (the engine's own generation, batched), ``loop`` (a hand-written loop over the cache, one token a
        step), ``no_cache`` (the whole prefix recomputed at every step).
        A prompt is a list of token ids; with the capability ``generate:messages`` it is a conversation, a list of
        ``{"role", "content"}``, to which the server applies its chat template.
        """

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """``{"logprobs": [float32 (T-1,), …]}``: log-probability in nats of each token given those before it.

        cache path: ``prefill`` (one pass) or ``decode`` (token by token through the cache).
        """

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """``{"scores": [fields of Scores, …]}`` for the ``last`` tokens of each sequence, by the engine's own prefill, in batches.

        A sequence has at least ``last + 2`` tokens.
        """

    def layout(self) -> Message:
        """``{"parameters": [fields of Parameter, …], "tied": [[name, name], …]}``: every stored tensor once.

        Of a model that is split over ranks ``{"ranks": [{"tp_rank", "pp_rank", "parameters", "tied"}, …]}``, of the ranks of one
        replica, each parameter with a hash of its ``content``.
        """

    def memory(self, *, reset_peak: bool = False) -> Message:
        """The fields of ``MemoryReport``; with ``reset_peak`` the run peak is reset after this answer."""

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The fields of ``CacheReport`` for one prompt and ``extend`` tokens decoded after it."""

    def compare_cache_paths(
        self,
        *,
        sequences: Sequence[Sequence[int]],
        candidate: Message,
        reference: Message,
        config: Message | None = None,
        dtype: str = "",
        seed: int = 0,
    ) -> Message:
        """The fields of ``CachePathComparisons`` for two ``CachePath``s over the same tokens.

        config: of a model made for this with random weights from ``seed``, in ``dtype``; None means the one that is served.
        """

    def cache_counters(self) -> Message:
        """The fields of ``CacheCounters``: what the engine counted since it was loaded."""

    def reset_prefix_cache(self) -> Message:
        """Empty the prefix cache, so that the next request finds nothing there: ``{}``."""

    def kv_pool(self) -> Message:
        """The fields of ``KVPool``."""

    def ranks(self) -> Message:
        """``{"ranks": [fields of Rank, …]}``: every process that holds a part of the model, alive now."""

    def settings(self) -> Message:
        """``{"resolved": {...}, "defaults": {...}}``: the configuration in force, and the engine's own defaults."""

    def calibrate(self) -> Message:
        """The fields of ``Calibration``, measured now, in about a second."""

    def reference_step(self) -> Message:
        """The fields of ``ReferenceStep``: a frozen decode step, measured now in the first rank's process, in about 0.1 seconds."""

    def trace(self, *, batches: Sequence[Sequence[Sequence[int]]], sampling: Message) -> Message:
        """The fields of ``StepTrace``: what the first rank's accelerator does while each batch of prompts is generated for."""

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """``{"result": …}``: the user's ``function`` from the file ``path``, called with the live model and ``arguments``."""

    def talk(self, *, requests: Sequence[Message], concurrency: int = 1) -> Message:
        """``{"answers": [...]}``: what a server answered over HTTP, one a request; the fields of ``Reply``."""

    def stop(self) -> Message:
        """Stop the engine's own server with SIGTERM: ``{"seconds", "status", "left"}``.

        seconds: until it ended. status: its exit status, negative for a signal; None if it had to be killed. left: ids of its
        processes that outlived it.
        """

    def close(self) -> None:
        """Release what the end of the process would not free."""
