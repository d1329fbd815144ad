"""Prefix caching: a prompt that was seen before is found again to its last whole block, and one that differs is not.

Without these counts a comparison of cached and fresh answers may compare two fresh ones (docs/methods.md#prefix-hits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """How many tokens of one prompt came from the prefix cache, as the engine reports it.

    Attributes:
        length: Tokens of the prompt.
        cold: Cached tokens right after the cache was emptied; None where the engine does not say.
        warm: Cached tokens when the same prompt was asked again; None where the engine does not say.
        flipped: Pairs of the position of a changed token and the cached tokens of the changed prompt, None where the engine does
            not say; empty where nothing was changed.
    """

    length: int
    cold: int | None
    warm: int | None
    flipped: tuple[tuple[int, int | None], ...] = ()


def whole_blocks(tokens: int, block: int) -> int:
    """Tokens in the whole blocks of a prefix of this many."""
    return tokens // block * block


def check_prefix_hits(*, found: Sequence[CachedTokens], block: int) -> Verdict:
    """Whether each prompt is found to the block, and no token after a changed one.

    block: tokens of one. Of n prompt tokens the last is always computed, so that floor((n - 1) / block) x block can be found;
    of a prompt that differs at position i, floor(i / block) x block.
    """
    lines: list[str] = []
    hits = 0
    for number, prompt in enumerate(found):
        expected = whole_blocks(prompt.length - 1, block)
        counts = [("after the cache was emptied", prompt.cold, 0), ("asked again", prompt.warm, expected)]
        counts += [(f"with token {position} changed", cached, whole_blocks(position, block)) for position, cached in prompt.flipped]
        hits += prompt.warm or 0
        lines += (
            f"prompt {number} of {prompt.length} tokens, {when}: "
            f"{'an unknown number of' if cached is None else cached} tokens found instead of {wanted}"
            for when, cached, wanted in counts
            if cached != wanted
        )
        if not expected:
            lines.append(f"prompt {number} of {prompt.length} tokens has no whole block of {block} to be found")
    if not any(prompt.flipped for prompt in found):
        lines.insert(0, "nothing was compared: no prompt with a changed token")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="a prompt is found in the prefix cache to its last whole block, and not beyond a changed token",
        key=f"{hits:,} tokens found",
        measurements=(
            Measurement("cached tokens of repeated prompts", hits, "tokens", len(found)),
            Measurement("changed tokens", sum(len(prompt.flipped) for prompt in found), "prompts", len(found)),
        ),
        threshold=f"exactly the whole blocks of {block} tokens before the last token, or before the changed one",
        threshold_source="the engine's block size",
        smallest_detectable="exact",
        advice="more than expected: a stale prefix, look at how blocks are hashed (tokens, parent, adapter, salt); "
        "less: prefix caching is off or evicts, see the engine's settings",
        details=first_offenders(lines),
    )
