"""Generation: many sequences in one cache, and the plain loops that it is compared with."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llminfer.worker.backends.llamacpp.sampling import Sampler, TopTokens
from pytest_llminfer.worker.backends.requests import finish
from pytest_llminfer.worker.backends.stepwise import generate_without_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_llminfer.worker.backends.llamacpp.decoder import Decoder

    Progress = Callable[[str, int, int], None]

_HEARTBEAT_SECONDS = 10.0


@dataclass(slots=True)
class _Running:
    """A sequence in the cache.

    Attributes:
        number: Its place in the request.
        slot: Its sequence id in the cache.
        reserved: Cells of the cache that it may fill: its prompt and ``max_tokens``.
        fresh: Tokens that have not been computed yet.
        sampler: Chooses its tokens.
        top: The most likely tokens of its steps.
        length: Tokens that have been computed.
        generated: Tokens chosen so far.
    """

    number: int
    slot: int
    reserved: int
    fresh: Sequence[int]
    sampler: Sampler
    top: TopTokens
    length: int = 0
    generated: list[int] = field(default_factory=list)


class Generation:
    """One request on cache path ``engine``: a step computes the next token of every running sequence and parts of new prompts.

    A sequence is let in when the cache has room for all that it may grow to, so that none has to be taken out again.
    """

    def __init__(
        self, library: Any, decoder: Decoder, sequences: int, *, sampling: Mapping[str, Any], stops: list[int], top: int
    ) -> None:
        self._library, self._decoder = library, decoder
        self._sampling, self._stops, self._top = sampling, stops, top
        self._slots = list(range(sequences))
        self._free = decoder.cells
        self._running: list[_Running] = []

    def run(self, prompts: Sequence[Sequence[int]], progress: Progress) -> list[dict[str, Any]]:
        """One answer a prompt, in order."""
        waiting = deque(range(len(prompts)))
        outputs: list[dict[str, Any]] = [{} for _ in prompts]
        done, last = 0, time.monotonic()
        try:
            while waiting or self._running:
                self._admit(prompts, waiting)
                for ended in self._step():
                    outputs[ended.number] = self._answer(ended)
                    done += 1
                if time.monotonic() - last > _HEARTBEAT_SECONDS:
                    last = time.monotonic()
                    progress("generating", done, len(prompts))
        finally:
            for left in self._running:
                left.sampler.close()
        progress("generating", done, len(prompts))
        return outputs

    def _admit(self, prompts: Sequence[Sequence[int]], waiting: deque[int]) -> None:
        while waiting and self._slots:
            prompt = prompts[waiting[0]]
            reserved = len(prompt) + self._sampling["max_tokens"]
            if reserved > self._free and self._running:
                return
            number = waiting.popleft()
            self._free -= reserved
            sizes = {"vocabulary": self._decoder.vocabulary, "remembered": reserved}
            sampler = Sampler(self._library, self._sampling, prompt, number=number, **sizes)
            self._running.append(_Running(number, self._slots.pop(), reserved, list(prompt), sampler, TopTokens(self._top)))

    def _step(self) -> list[_Running]:
        """Compute one batch; the sequences that ended with it."""
        rows: list[tuple[_Running, int]] = []
        # Those that generate come first: a long prompt must not hold them up.
        for sequence in sorted(self._running, key=lambda running: not running.generated):
            piece = sequence.fresh[: self._decoder.room]
            if not piece:
                break
            whole = len(piece) == len(sequence.fresh)
            row = self._decoder.add(piece, sequence.length, sequence.slot, last=whole)
            sequence.length += len(piece)
            sequence.fresh = sequence.fresh[len(piece) :]
            if whole:
                rows.append((sequence, row))
        logits = self._decoder.run()
        return [sequence for place, (sequence, row) in enumerate(rows) if self._extend(sequence, row, logits[place])]

    def _extend(self, sequence: _Running, row: int, logits: Any) -> bool:
        """Choose the next token; whether the sequence ended with it."""
        sequence.top.add(logits)
        token = sequence.sampler.choose(self._decoder.context, row)
        sequence.generated.append(token)
        sequence.fresh = [token]
        return token in self._stops or len(sequence.generated) == self._sampling["max_tokens"]

    def _answer(self, ended: _Running) -> dict[str, Any]:
        self._running.remove(ended)
        self._decoder.forget(ended.slot)
        self._slots.append(ended.slot)
        self._free += ended.reserved
        ended.sampler.close()
        return _fields(ended.generated, self._stops, ended.top)


def generate_in_loop(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    *,
    stops: list[int],
    top: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Greedy decoding written out: one prompt at a time, one token a step."""
    outputs = []
    for number, prompt in enumerate(prompts):
        progress("generating", number, len(prompts))
        decoder.clear()
        kept = TopTokens(top)
        generated: list[int] = []
        logits, length = decoder.feed(prompt), len(prompt)
        while True:
            kept.add(logits)
            generated.append(int(logits.argmax()))
            if generated[-1] in stops or len(generated) == sampling["max_tokens"]:
                break
            logits, length = decoder.feed(generated[-1:], length), length + 1
        outputs.append(_fields(generated, stops, kept))
    progress("generating", len(prompts), len(prompts))
    return outputs


def generate_anew(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    *,
    stops: list[int],
    top: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Greedy decoding with nothing kept: the whole prefix for every token, in an empty cache."""

    def step(prefixes: list[list[int]], logprobs: int) -> list[dict[str, Any]]:
        answers = []
        for prefix in prefixes:
            decoder.clear()
            logits = decoder.feed(prefix)
            kept = TopTokens(logprobs)
            kept.add(logits)
            answers.append({"token_ids": [int(logits.argmax())], **kept.fields()})
        return answers

    return generate_without_cache(step, prompts, sampling["max_tokens"], stops, logprobs=top, progress=progress)


def _fields(generated: list[int], stops: list[int], top: TopTokens) -> dict[str, Any]:
    token_ids, reason = finish(generated, stops)
    return {"token_ids": token_ids, "finish_reason": reason, **top.fields()}
