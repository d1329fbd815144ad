"""Settings: what an engine resolved and what it would do by default, field by field against a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Iterator

STAMPS = frozenset({"transformers_version", "_from_model_config", "_commit_hash"})
"""What libraries write about themselves, or about where a configuration came from: it moves with every release and sets nothing."""
_SHOWN = 20
_ABSENT = "(absent)"


def check_settings(
    *, found: Mapping[str, Any], expected: Mapping[str, Any], what: str, then: Mapping[str, str], now: Mapping[str, str]
) -> Verdict:
    """Whether every field is as recorded; a field that came or went counts too, a stamp (``STAMPS``) does not.

    found, expected: plain data, nested or flat. what: "resolved settings" or "defaults". then, now: the versions of
    the engine and its packages when it was recorded, and today.
    """
    ours, theirs = dict(_flat(found)), dict(_flat(expected))
    changed = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    gone, new = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
    lines = [f"{name}: {_text(theirs[name])} → {_text(ours[name])}" for name in changed]
    lines += [f"{name}: {_text(theirs[name])} → {_ABSENT}" for name in gone]
    lines += [f"{name}: {_ABSENT} → {_text(ours[name])}" for name in new]
    if not theirs or not ours:
        lines.insert(0, f"nothing was compared: {len(theirs)} fields recorded, {len(ours)} found")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"the engine's {what} are as recorded",
        key=f"{len(changed) + len(gone) + len(new)} changed" if lines else f"{len(theirs)} fields",
        measurements=(
            Measurement("fields that changed", len(changed), "fields", len(theirs)),
            Measurement("fields that are gone", len(gone), "fields", len(theirs)),
            Measurement("fields that are new", len(new), "fields", len(ours)),
        ),
        threshold="every field equal",
        threshold_source=f"the record ({_versions(then, now)})",
        smallest_detectable="exact",
        advice="an upgrade that moves a default changes memory, speed or outputs: pin it with --engine-args, or record again",
        details=first_offenders(lines, shown=_SHOWN),
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in STAMPS:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _versions(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The engine's, and those of packages that have changed: an engine's default may be one of theirs."""
    moved = [name for name in sorted(then.keys() & now.keys()) if name != "engine" and then[name] != now[name]]
    engine = f"engine {then.get('engine', 'unknown')} → {now.get('engine', 'unknown')}"
    return ", ".join([engine, *(f"{name} {then[name]} → {now[name]}" for name in moved)])


def _text(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004 - what fits in a line
