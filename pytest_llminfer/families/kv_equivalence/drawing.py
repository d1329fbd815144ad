"""Ways through a KV cache drawn by hypothesis: prompts, lengths, splits, batches and pads, a strategy for each family of cache
paths.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.protocol.cache_paths import CachePath

try:
    from hypothesis import HealthCheck, Phase, Verbosity, find, given, seed, settings
    from hypothesis import strategies as st
    from hypothesis.errors import NoSuchExample
except ModuleNotFoundError:
    raise BadInputError("drawing cache paths needs the package hypothesis: pip install 'pytest-llminfer[suites]'") from None

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn, SearchStrategy

LENGTHS = (36, 52)
"""Tokens of a sequence: two blocks of 16 and more, and more than the window of a cut configuration."""
SHRINKING_SECONDS = 5.0
"""How long a failing cache path is shortened, at most."""


@dataclass(frozen=True, slots=True)
class PathCase:
    """One request: what is fed, and how.

    Attributes:
        sequences: Token ids of each sequence.
        cache_path: How they are fed.
    """

    sequences: tuple[tuple[int, ...], ...]
    cache_path: CachePath


@dataclass(frozen=True, slots=True)
class Subject:
    """What a strategy must know of a model.

    Attributes:
        vocabulary: Number of token ids to draw from.
        window: Smallest window of its layers, in tokens; 0 for none.
    """

    vocabulary: int
    window: int = 0


def _tokens(draw: DrawFn, subject: Subject, lengths: list[int]) -> tuple[tuple[int, ...], ...]:
    """Even prompts would hide what is in the wrong place: they are drawn from a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return tuple(tuple(rng.integers(0, subject.vocabulary, length).tolist()) for length in lengths)


def _length(draw: DrawFn) -> int:
    return draw(st.integers(*LENGTHS))


def _split(draw: DrawFn, length: int, *, parts: int = 5) -> tuple[int, ...]:
    """Two parts or more."""
    cuts = draw(st.lists(st.integers(1, length - 1), min_size=1, max_size=parts - 1, unique=True))
    return tuple(end - start for start, end in itertools.pairwise([0, *sorted(cuts), length]))


def _decoded(draw: DrawFn, length: int) -> tuple[int, ...]:
    """A prompt, and the rest token by token."""
    prompt = draw(st.integers(1, length // 2))
    return (prompt, *(1,) * (length - prompt))


def _either(draw: DrawFn, length: int) -> tuple[int, ...]:
    return draw(st.sampled_from((_split, _decoded)))(draw, length)


def _one(draw: DrawFn, subject: Subject, **cache_path: Any) -> PathCase:
    length = sum(cache_path["chunks"])
    return PathCase(_tokens(draw, subject, [length]), CachePath(**cache_path))


@st.composite
def _decode(draw: DrawFn, subject: Subject) -> PathCase:
    return _one(draw, subject, chunks=_decoded(draw, _length(draw)))


@st.composite
def _chunked(draw: DrawFn, subject: Subject) -> PathCase:
    return _one(draw, subject, chunks=_split(draw, _length(draw)))


@st.composite
def _multi_turn(draw: DrawFn, subject: Subject) -> PathCase:
    """Each turn a question in one pass, and its answer token by token."""
    length = _length(draw)
    turns = _split(draw, length, parts=3)
    answers = [draw(st.integers(0, turn - 1)) for turn in turns]
    chunks = [part for turn, answer in zip(turns, answers, strict=True) for part in (turn - answer, *(1,) * answer)]
    return _one(draw, subject, chunks=tuple(chunks))


@st.composite
def _batched(draw: DrawFn, subject: Subject) -> PathCase:
    """Rows of one length that are continued, or of several lengths in one pass."""
    batch = draw(st.integers(2, 4))
    if draw(st.booleans()):
        length = _length(draw)
        return PathCase(_tokens(draw, subject, [length] * 2), CachePath(chunks=_split(draw, length), batch=batch))
    lengths = [_length(draw) for _ in range(2)]
    return PathCase(_tokens(draw, subject, lengths), CachePath(batch=batch))


@st.composite
def _left_padded(draw: DrawFn, subject: Subject) -> PathCase:
    return _one(
        draw, subject, chunks=_either(draw, _length(draw)), pads_left=draw(st.integers(1, 12)), batch=draw(st.integers(1, 2))
    )


@st.composite
def _right_padded(draw: DrawFn, subject: Subject) -> PathCase:
    """Pads between prompt and answer; where a layer has a window, which transformers counts in columns, after the prompt alone."""
    pads = draw(st.integers(1, 8))
    if subject.window:
        lengths = [_length(draw) for _ in range(2)]
        return PathCase(_tokens(draw, subject, lengths), CachePath(batch=2, pads_right=pads))
    return _one(draw, subject, chunks=_either(draw, _length(draw)), pads_right=pads, batch=draw(st.integers(1, 2)))


@st.composite
def _static(draw: DrawFn, subject: Subject) -> PathCase:
    return _one(draw, subject, chunks=_either(draw, _length(draw)), cache="static", spare=draw(st.integers(0, 24)))


@st.composite
def _sliding(draw: DrawFn, subject: Subject) -> PathCase:
    """Passes that end just before, at and after the window, in a cache that grows or one that is there from the start."""
    length = _length(draw)
    first = draw(st.integers(subject.window - 2, subject.window + 2))
    second = draw(st.integers(1, min(subject.window, length - first)))
    chunks = (first, second, *(1,) * (length - first - second))
    return _one(draw, subject, chunks=chunks, cache=draw(st.sampled_from(("dynamic", "static"))))


@st.composite
def _quantized(draw: DrawFn, subject: Subject) -> PathCase:
    bits, residual = draw(st.sampled_from((2, 4))), draw(st.integers(1, 16))
    return _one(draw, subject, chunks=_split(draw, _length(draw)), cache="quantized", cache_bits=bits, residual=residual)


@st.composite
def _fp8(draw: DrawFn, subject: Subject) -> PathCase:
    """The first pass sets the scales, and later values above its own saturate: it has most of the tokens."""
    first, later = draw(st.integers(24, 32)), draw(st.integers(4, 12))
    chunks = draw(st.sampled_from(((later,), (1,) * later)))
    return _one(draw, subject, chunks=(first, *chunks), cache="fp8")


@st.composite
def _crop(draw: DrawFn, subject: Subject) -> PathCase:
    """Some of a sequence, other tokens that are taken back, and the rest."""
    length = _length(draw)
    cropped = {"crop": draw(st.integers(1, length - 1)), "crop_extra": draw(st.integers(1, 12))}
    return _one(draw, subject, chunks=_either(draw, length), **cropped)


@st.composite
def _beams(draw: DrawFn, subject: Subject) -> PathCase:
    cache = draw(st.sampled_from(("dynamic", "static")))
    return _one(draw, subject, chunks=_either(draw, _length(draw)), beams=draw(st.integers(2, 3)), cache=cache)


@st.composite
def _prefix(draw: DrawFn, subject: Subject) -> PathCase:
    length = _length(draw)
    prefix, cache = draw(st.integers(2, length - 1)), draw(st.sampled_from(("dynamic", "static")))
    return _one(draw, subject, chunks=_either(draw, length), prefix=prefix, cache=cache)


STRATEGIES: dict[str, Callable[[Subject], SearchStrategy[PathCase]]] = {
    "decode": _decode,
    "chunked": _chunked,
    "multi-turn": _multi_turn,
    "batched": _batched,
    "left-padded": _left_padded,
    "right-padded": _right_padded,
    "static": _static,
    "sliding": _sliding,
    "crop": _crop,
    "beams": _beams,
    "prefix": _prefix,
    "quantized": _quantized,
    "fp8": _fp8,
}


def _settings(examples: int, *, derandomized: bool = True) -> settings:
    """Nothing that depends on the clock or on earlier runs."""
    return settings(
        max_examples=examples,
        derandomize=derandomized,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


def draw_cases(strategy: SearchStrategy[PathCase], examples: int, *, number: int | None = None) -> list[PathCase]:
    """``examples`` ways, the same ones each time; the simplest comes first. number: of another series of them."""
    drawn: list[PathCase] = []

    @seed(number or 0)
    @_settings(examples, derandomized=number is None)
    @given(strategy)
    def collect(case: PathCase) -> None:
        drawn.append(case)

    collect()
    return drawn


def shorten(strategy: SearchStrategy[PathCase], failing: PathCase, fails: Callable[[PathCase], bool]) -> PathCase:
    """A shorter way that fails too, or ``failing`` itself, within ``SHRINKING_SECONDS``."""
    known = {failing: True}
    end = time.monotonic() + SHRINKING_SECONDS

    def condition(case: PathCase) -> bool:
        if case not in known:
            known[case] = time.monotonic() < end and fails(case)
        return known[case]

    try:
        shorter: PathCase = find(strategy, condition, settings=_settings(20), random=random.Random(0))  # noqa: S311 - no secret
    except NoSuchExample:
        return failing
    return min((shorter, failing), key=lambda case: (sum(map(len, case.sequences)), len(case.cache_path.chunks)))
