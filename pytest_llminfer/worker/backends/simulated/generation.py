"""Generation by the NumPy model: batches over a cache, and the two hand-written cache paths to compare them with."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.worker.backends.batching import plan_batches
from pytest_llminfer.worker.backends.requests import end_tokens, finish
from pytest_llminfer.worker.backends.simulated.sampling import Sampler, TopTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_llminfer.worker.backends.simulated.faults import Faults
    from pytest_llminfer.worker.backends.simulated.kv_cache import KVCache
    from pytest_llminfer.worker.backends.simulated.llama import Llama
    from pytest_llminfer.worker.backends.simulated.profile import Profile

_HEARTBEAT_SECONDS = 10.0


class Request:
    """The prompts of one request, and what was generated for them so far."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], sampling: Mapping[str, Any], model_end_tokens: Sequence[int], top: int
    ) -> None:
        self.prompts = prompts
        self.max_tokens: int = sampling["max_tokens"]
        self.stops = end_tokens(sampling, model_end_tokens)
        self.generated: list[list[int]] = [[] for _ in prompts]
        self._sampler = Sampler(sampling, prompts)
        self._top = TopTokens(top, len(prompts))

    def step(self, logits: np.ndarray, numbers: Sequence[int]) -> list[int]:
        """Choose and keep the next token of each of the prompts ``numbers``."""
        self._top.add(logits, numbers)
        tokens = self._sampler.choose(logits, numbers)
        for number, token in zip(numbers, tokens, strict=True):
            self.generated[number].append(token)
        return tokens

    def ended(self, number: int) -> bool:
        """Whether a prompt's answer is complete."""
        tokens = self.generated[number]
        return len(tokens) >= self.max_tokens or (bool(tokens) and tokens[-1] in self.stops)

    def outputs(self) -> list[dict[str, Any]]:
        """The fields of ``Generation``, in the order of the prompts."""
        answers = []
        for number, tokens in enumerate(self.generated):
            token_ids, reason = finish(tokens, self.stops)
            answers.append({"token_ids": token_ids, "finish_reason": reason, **self._top.fields(number)})
        return answers


def by_batches(
    model: Llama,
    request: Request,
    faults: Faults,
    profile: Profile,
    *,
    max_batch_tokens: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Cache path ``engine``: prompts of similar length together, padded on the right; rows leave the batch when they end."""
    lengths = [len(prompt) for prompt in request.prompts]
    done = 0
    for batch in plan_batches(lengths, max_tokens=request.max_tokens, max_batch_tokens=max_batch_tokens):
        model.cache_dtype = faults.cache_dtype()
        cache = model.new_cache(len(batch), lengths[batch[0]] + request.max_tokens)
        with profile.hold(cache.nbytes):
            _run_batch(model, request, batch, cache, faults, functools.partial(progress, "generating", done, len(lengths)))
        done += len(batch)
        progress("generating", done, len(lengths))


def _run_batch(
    model: Llama, request: Request, batch: Sequence[int], cache: KVCache, faults: Faults, heartbeat: Callable[[], None]
) -> None:
    lengths = np.array([len(request.prompts[number]) for number in batch])
    tokens = np.zeros((len(batch), lengths.max()), np.int64)
    for row, number in enumerate(batch):
        tokens[row, : lengths[row]] = request.prompts[number]
    hidden = model.forward(tokens, cache, lengths=lengths)[np.arange(len(batch)), lengths - 1]
    faults.after_prompt(cache)
    numbers = list(batch)
    last = time.monotonic()
    while True:
        chosen = request.step(model.logits(hidden), numbers)
        going = np.array([not request.ended(number) for number in numbers])
        if not going.any():
            return
        if not going.all():
            cache.keep_rows(np.flatnonzero(going))
            numbers = [number for number, goes in zip(numbers, going, strict=True) if goes]
        fresh = np.array(chosen)[going][:, None]
        hidden = model.forward(fresh, cache, shift=faults.position_shift())[:, -1]
        faults.after_step(cache)
        if time.monotonic() - last > _HEARTBEAT_SECONDS:
            last = time.monotonic()
            heartbeat()


def one_by_one(model: Llama, request: Request, *, cached: bool, progress: Callable[[str, int, int], None]) -> None:
    """Cache paths ``loop`` (a token a step over a cache) and ``no_cache`` (the whole prefix recomputed at every step)."""
    model.cache_dtype = np.dtype(np.float32)
    for number, prompt in enumerate(request.prompts):
        cache = model.new_cache(1, len(prompt) + request.max_tokens)
        fresh = list(prompt)
        while not request.ended(number):
            if not cached:
                cache = model.new_cache(1, len(fresh))
            hidden = model.forward(np.array([fresh]), cache)[:, -1]
            (token,) = request.step(model.logits(hidden), [number])
            fresh = [token] if cached else [*fresh, token]
        progress("generating", number + 1, len(request.prompts))
