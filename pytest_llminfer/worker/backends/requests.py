"""What a request must hold before an engine sees it: a wrong one is refused with a reason, not by a fault inside a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec

GENERATE_PATHS = ("engine", "loop", "no_cache")
SCORE_PATHS = ("prefill", "decode")


def check_parallelism(spec: EngineSpec) -> None:
    """Refuse a cell that one process cannot hold.

    Raises:
        UnsupportedError: tp, pp or dp is above 1.
    """
    for name in ("tp", "pp", "dp"):
        if getattr(spec, name) > 1:
            raise UnsupportedError(
                f"{spec.engine} does not split one engine over devices yet: {name}={getattr(spec, name)}", f"use {name}=1"
            )


def check_sampling(sampling: Mapping[str, Any], *, cache_path: str) -> None:
    """Refuse values that engines read differently or not at all.

    Raises:
        BadInputError: a field outside its range, or an unknown cache path.
        UnsupportedError: anything but greedy decoding on a cache path other than ``engine``.
    """
    check_cache_path(cache_path, GENERATE_PATHS)
    if sampling["max_tokens"] < 1:
        raise BadInputError(f"max_tokens must be at least 1, not {sampling['max_tokens']}")
    if sampling["temperature"] < 0:
        raise BadInputError(f"temperature must be 0 (greedy) or more, not {sampling['temperature']}")
    if not 0 < sampling["top_p"] <= 1:
        raise BadInputError(f"top_p must lie in (0, 1], not {sampling['top_p']}")
    if sampling["top_k"] != -1 and sampling["top_k"] < 1:
        raise BadInputError(f"top_k must be -1 (all tokens) or at least 1, not {sampling['top_k']}")
    if sampling["repetition_penalty"] <= 0:
        raise BadInputError(f"repetition_penalty must be above 0 (1 is none), not {sampling['repetition_penalty']}")
    if cache_path != "engine" and (sampling["temperature"] > 0 or sampling["repetition_penalty"] != 1):
        raise UnsupportedError(f"cache path {cache_path!r} decodes greedily only", "use temperature 0 and repetition_penalty 1")


def check_cache_path(cache_path: str, cache_paths: Collection[str]) -> None:
    """Refuse a cache path that does not exist.

    Raises:
        BadInputError: with the valid ones.
    """
    if cache_path not in cache_paths:
        raise BadInputError(f"unknown cache path {cache_path!r}; valid: {', '.join(cache_paths)}")


def check_tokens(
    sequences: Sequence[Sequence[int]], *, vocab_size: int, max_positions: int, extra: int = 0, least: int = 1
) -> None:
    """Refuse sequences that are too short, hold an id outside of the vocabulary, or leave no room for ``extra`` tokens.

    Raises:
        BadInputError: with the number of the sequence.
    """
    for number, sequence in enumerate(sequences):
        if len(sequence) < least:
            raise BadInputError(f"sequence {number} has {len(sequence)} tokens; at least {least} are needed")
        if min(sequence) < 0 or max(sequence) >= vocab_size:
            wrong = next(token for token in sequence if not 0 <= token < vocab_size)
            raise BadInputError(f"sequence {number} holds token id {wrong}; the vocabulary has the ids 0 to {vocab_size - 1}")
        if len(sequence) + extra > max_positions:
            raise BadInputError(
                f"sequence {number} has {len(sequence)} tokens and {extra} may follow, but the model has "
                f"{max_positions} positions; ask for fewer tokens or shorten the prompt"
            )


def finish(generated: Sequence[int], end_token_ids: Collection[int]) -> tuple[list[int], str]:
    """The tokens up to and with the first end token, and the finish reason."""
    for position, token in enumerate(generated):
        if token in end_token_ids:
            return list(generated[: position + 1]), "stop"
    return list(generated), "length"


def end_tokens(sampling: Mapping[str, Any], model_end_tokens: Sequence[int]) -> list[int]:
    """The ids that end a generation under this sampling, in rising order."""
    own = [] if sampling["ignore_eos"] else list(model_end_tokens)
    return sorted({*own, *sampling["stop_token_ids"]})
