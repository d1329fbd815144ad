"""Chat templates: the token ids of given conversations, against a record, and by two ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def check_conversations(
    *,
    found: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    claim: str,
    source: str,
    names: Mapping[int, str] | None = None,
    departures: Sequence[str] = (),
    refusals: Sequence[str] = (),
) -> Verdict:
    """Whether conversations have the token ids that are expected, each from its first token to its last.

    found, expected: token ids of each conversation, in order. names: what special tokens are called. departures: what else is wrong
    with them, a line each. refusals: conversations that the template does not take, a line each, said and not judged (no ids on
    either side). A doubled first token is named for what it is: a template that writes a beginning which the
    tokenizer adds as well.
    """
    lines = list(departures)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if len(ours) > 1 and ours[0] == ours[1] and (names or {}).get(ours[0]):
            lines.append(f"conversation {number} begins with {(names or {})[ours[0]]} twice")
        if list(ours) != list(theirs):
            lines.append(f"conversation {number}: {_difference(ours, theirs, names or {})}")
    if len(found) != len(expected):
        lines.insert(0, f"{len(found)} conversations for {len(expected)}")
    tokens = sum(map(len, expected))
    if not tokens:
        lines.insert(0, "nothing was compared")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=f"{len(lines)} differences" if lines else f"{tokens} tokens" + (f", {len(refusals)} refused" if refusals else ""),
        measurements=(Measurement("tokens compared", tokens, "tokens", len(expected)),),
        threshold="every token id equal",
        threshold_source=source,
        smallest_detectable="exact",
        advice="compare chat_template and the tokenizer's own additions (add_bos_token); accuracy moves with every one of them",
        details=(*first_offenders(lines), *refusals),
    )


def _difference(ours: Sequence[int], theirs: Sequence[int], names: Mapping[int, str]) -> str:
    place = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def at(ids: Sequence[int]) -> str:
        return "its end" if place >= len(ids) else f"token {ids[place]}" + (f" {names[ids[place]]}" if ids[place] in names else "")

    return f"{at(ours)} instead of {at(theirs)} at position {place} ({len(ours)} tokens for {len(theirs)})"
