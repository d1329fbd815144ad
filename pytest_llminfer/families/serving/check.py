"""A server: it lists its model, answers completely and correctly in every mode, requires its key, and ends on SIGTERM."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_llminfer.families.serving.observe import OK, UNAUTHORIZED
from pytest_llminfer.models.shape import TORCH_DTYPES, torch_dtype
from pytest_llminfer.numerics.near_ties import STEPS, first_divergence, measured_noise
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.numerics.near_ties import Divergence
    from pytest_llminfer.observations.serving import Reply

COMPARED = 0.9
"""The share of answers that must have been compared to their end for PASS: a near tie ends the comparison of one."""
STOP_SECONDS = 10.0
_OWN_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
"""Signals by which a server may end after SIGTERM: SGLang kills its whole process tree, itself included, once it is idle."""
_INTERFACE = "the OpenAI interface"


def check_model_list(*, reply: Reply, name: str) -> Verdict:
    """Whether the server lists the model by the name under which it is asked."""
    lines = [_failed("the list of models", reply)] if reply.status != OK else []
    if not lines and name not in reply.models:
        lines.append(f"{name!r} is not listed; listed: {', '.join(reply.models) or 'nothing'}")
    return _exact(
        lines,
        claim="the server lists the model that it serves, by the name under which it is asked",
        key=f"{len(reply.models)} listed",
        measurements=(Measurement("models listed", len(reply.models), "models"),),
        threshold=f"status {OK} and {name!r} among the models",
        advice="look at the served model's name, and at what answers under /v1/models",
    )


def check_answered(*, replies: Mapping[str, Sequence[Reply]]) -> Verdict:
    """Whether every request was answered with text or tokens. replies: by the name of the endpoint, each at least one."""
    lines = [f"nothing was asked of {name}" for name, answers in replies.items() if not answers]
    for name, answers in replies.items():
        for number, reply in enumerate(answers):
            if reply.status != OK:
                lines.append(_failed(f"{name} {number}", reply))
            elif not (reply.text or reply.token_ids):
                lines.append(f"{name} {number}: an empty answer, ended by {reply.finish_reason!r}")
    total = sum(map(len, replies.values()))
    if not replies:
        lines.append("nothing was asked")
    return _exact(
        lines,
        claim=f"{' and '.join(replies) or 'the server'} answer",
        key=f"{total} answers",
        measurements=tuple(Measurement(f"{name} requests", len(answers), "requests") for name, answers in replies.items()),
        threshold=f"status {OK} and an answer that is not empty, of every request",
        advice="look at the server's log for the request that failed",
    )


def check_finish_reasons(*, short: Sequence[Reply], full: Sequence[Reply], short_limit: int, full_limit: int) -> Verdict:
    """Whether ``length`` and ``stop`` are reported where they apply.

    short, full: greedy answers to the same prompts in the same order, with the two limits in tokens. An answer with fewer tokens
    than its limit ended by itself. One with as many was cut, unless the full answer is no longer: then it ended there where the
    server counts the token that ends it, and was cut before it where it does not, and both words are right.
    At least one answer must have been cut and one must have ended by itself.
    """
    lines = [_failed(f"prompt {number}", reply) for number, reply in enumerate([*short, *full]) if reply.status != OK]
    if len(short) != len(full):
        lines.append(f"{len(short)} short answers for {len(full)} full ones")
    seen: list[str] = []
    either = 0
    for number, (cut, whole) in enumerate(zip(short, full, strict=False)):
        if cut.completion_tokens is None or whole.completion_tokens is None:
            lines.append(f"prompt {number}: the server does not say how many tokens its answer has")
            continue
        for reply, limit, later in ((cut, short_limit, whole.completion_tokens), (whole, full_limit, None)):
            tokens = reply.completion_tokens or 0
            if tokens > limit:
                lines.append(f"prompt {number}: {tokens} tokens where {limit} were allowed")
                continue
            if tokens == limit and later == tokens and reply.finish_reason in ("stop", "length"):
                either += 1
                continue
            expected = "stop" if tokens < limit or later == tokens else "length"
            seen.append(expected)
            if reply.finish_reason != expected:
                why = "ended by itself" if expected == "stop" else f"was cut at {limit}"
                lines.append(f"prompt {number}: {tokens} tokens, the answer {why}, but finish_reason is {reply.finish_reason!r}")
    outcome, reason = Outcome.FAIL if lines or not (seen or either) else Outcome.PASS, ""
    if not lines and not seen and not either:
        reason = "nothing was compared: no answers"
    elif not lines and set(seen) != {"stop", "length"}:
        missing = "was cut at the limit" if "length" not in seen else "ended by itself"
        outcome, reason = Outcome.INCONCLUSIVE, f"no answer {missing}, so that finish reason was not seen"
    return Verdict(
        outcome=outcome,
        claim="finish_reason is 'length' at the token limit and 'stop' at the end of a full answer",
        key=f"{len(seen)} answers" if not lines else f"{len(lines)} wrong",
        measurements=(
            Measurement("answers cut at the limit", seen.count("length"), "answers", len(seen)),
            Measurement("answers that ended by themselves", seen.count("stop"), "answers", len(seen)),
            *([Measurement("answers as long as the limit", either, "answers", len(seen) + either, "cut or ended")] * bool(either)),
        ),
        threshold="every finish reason is the one that the number of tokens implies",
        threshold_source=_INTERFACE,
        smallest_detectable="one wrong finish reason",
        advice="ask for more tokens, or other prompts" if not lines else "look at how the server maps its engine's finish reasons",
        details=first_offenders([*([reason] if reason else []), *lines]),
    )


def check_same_replies(*, candidate: Sequence[Reply], reference: Sequence[Reply], dtype: str, claim: str) -> Verdict:
    """Whether two ways of asking the same prompts gave the same answers, but for ties within rounding.

    Tokens are compared where the server gives their ids (``numerics.near_ties``), and text and finish reason where tokens are
    the same or unknown. dtype: of the logits; the coarsest, bf16, where it is not known. The tolerance of a tie is no less than
    twice the noise between the two ways (``near_ties.measured_noise``, which a fault cannot widen at will). Without
    log-probabilities a tie cannot be distinguished from a fault behind the first token: INCONCLUSIVE.
    """
    logits = dtype if dtype in TORCH_DTYPES else "bf16"
    pairs = [(ours.generation, theirs.generation) for ours, theirs in zip(candidate, reference, strict=False)]
    noise = measured_noise([ours for ours, _ in pairs], [theirs for _, theirs in pairs], dtype=logits)
    lines = [
        _failed(f"{name}, prompt {number}", reply)
        for name, replies in (("here", candidate), ("in the reference", reference))
        for number, reply in enumerate(replies)
        if reply.status != OK
    ]
    if len(candidate) != len(reference):
        lines.append(f"{len(candidate)} answers for {len(reference)} requests: some were lost or added")
    ties: list[str] = []
    unknown: list[str] = []
    by_tokens = 0
    for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=False)):
        if (ours.status, theirs.status) != (OK, OK):
            continue
        if ours.token_ids is not None and theirs.token_ids is not None:
            by_tokens += 1
            divergence = first_divergence(ours.generation, theirs.generation, dtype=logits, noise=noise)
            if divergence is not None and divergence.is_tie:
                ties.append(f"near tie, prompt {number}, position {divergence.position}: the rest was not compared")
                continue
            if divergence is not None and _may_be_tie(divergence, ours, theirs):
                unknown.append(
                    f"prompt {number}, position {divergence.position}: another token, and no log-probabilities on either side"
                )
                continue
            if divergence is not None:
                place = f"token {divergence.candidate_token} instead of {divergence.reference_token}"
                lines.append(f"prompt {number}, position {divergence.position}: {place}: {_parting(ours.text, theirs.text)}")
                continue
        if ours.text != theirs.text:
            lines.append(f"prompt {number}: {_parting(ours.text, theirs.text)}")
        elif ours.finish_reason != theirs.finish_reason:
            lines.append(f"prompt {number}: same text, but ended by {ours.finish_reason!r}, not {theirs.finish_reason!r}")
    total, distinct = len(reference), len({reply.text or reply.token_ids for reply in reference})
    outcome, reason = _same_outcome(total, distinct, len(ties), len(unknown), lines)
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{total} answers" if not lines else f"{len(lines)} of {total} differ",
        measurements=(
            Measurement("answers that differ", len(lines), "answers", total),
            Measurement("near ties", len(ties), "answers", total, "the rest of these answers was not compared"),
            Measurement("parted without log-probabilities", len(unknown), "answers", total, "a tie or a fault"),
            Measurement("compared by token ids", by_tokens, "answers", total, "the others by their text"),
            Measurement("distinct answers", distinct, "answers", total),
        ),
        threshold=f"equal tokens, text and finish reason; another token's margin <= {STEPS} rounding steps of {torch_dtype(logits)}"
        f"{f' or {2 * noise:.3g} nats' if noise else ''}, on both sides",
        threshold_source="floating-point format" + (" and twice the noise measured between the two ways" if noise else ""),
        smallest_detectable="one other character, or one other token whose margin exceeds that",
        advice="ask a server that gives log-probabilities"
        if outcome is Outcome.INCONCLUSIVE and unknown
        else "look at how the server assigns answers to requests and assembles streams",
        details=first_offenders([*([reason] if reason else []), *lines, *unknown, *ties]),
    )


def _may_be_tie(divergence: Divergence, ours: Reply, theirs: Reply) -> bool:
    """Whether a near tie cannot be distinguished from a fault: both sides continue, and neither gives log-probabilities.

    Not at the first token, nor where one answer just ends: tokens that were lost, or the answer to another prompt, look so.
    """
    going_on = divergence.candidate_token is not None and divergence.reference_token is not None
    return divergence.position > 0 and going_on and ours.top_logprobs is None and theirs.top_logprobs is None


def _same_outcome(total: int, distinct: int, ties: int, unknown: int, lines: Sequence[str]) -> tuple[Outcome, str]:
    if not total:
        return Outcome.FAIL, "nothing was compared: no answers"
    if lines:
        return Outcome.FAIL, ""
    if unknown:
        return (
            Outcome.INCONCLUSIVE,
            f"{unknown} of {total} answers part where no log-probability can tell a tie from a fault",
        )
    if distinct == 1 and total > 1:
        return Outcome.INCONCLUSIVE, "all answers are the same, so that an exchange of two would not show"
    if total - ties < COMPARED * total and ties > 1:
        return Outcome.INCONCLUSIVE, f"{ties} of {total} answers part at a near tie: too few were compared to their end"
    return Outcome.PASS, ""


def check_key(*, wrong: Reply, missing: Reply, right: Reply) -> Verdict:
    """Whether a wrong key and no key are refused with 401, and the right one is let in after that."""
    lines = [
        f"{name} was answered with status {reply.status} instead of {UNAUTHORIZED}{f' ({reply.error})' if reply.error else ''}"
        for name, reply in (("a wrong key", wrong), ("no key", missing))
        if reply.status != UNAUTHORIZED
    ]
    if right.status != OK:
        lines.append(_failed("the right key, after that", right))
    return _exact(
        lines,
        claim="a wrong key and a missing one are refused, and the right one still works after that",
        key="refused" if not lines else f"{len(lines)} wrong",
        measurements=(Measurement("keys tried", 3, "keys"),),
        threshold=f"status {UNAUTHORIZED}, {UNAUTHORIZED} and {OK}",
        advice="look at how the server was given its API key, and which of its paths it guards",
    )


def check_stop(*, seconds: float, status: int | None, left: Sequence[int], again: Reply) -> Verdict:
    """Whether a server ends by itself in time on SIGTERM, with all its processes.

    seconds: until it ended. status: its exit status, negative for a signal; None if it had to be killed. left: ids of its
    processes that outlived it. again: an answer after it was restarted.
    """
    lines = []
    if status is None:
        lines.append(f"it did not end within {STOP_SECONDS:g} s of SIGTERM and was killed")
    elif status not in (0, *(-number for number in _OWN_ENDS)):
        lines.append(f"it ended with status {status}, which is a failure")
    if left:
        lines.append(f"{len(left)} of its processes outlived it: {', '.join(map(str, left))}")
    if again.status != OK:
        lines.append(_failed("after a new start", again))
    return _exact(
        lines,
        claim="the server ends by itself on SIGTERM, leaves no process, and starts again",
        key=f"{seconds:.1f} s",
        measurements=(
            Measurement("time to end", seconds, "s", 1, f"at most {STOP_SECONDS:g} s"),
            Measurement("processes left", len(left), "processes"),
        ),
        threshold=f"at most {STOP_SECONDS:g} s, ended by SIGTERM or with status 0, no process left",
        advice="look at the server's log from the signal on, and at which of its processes wait for another",
    )


def _exact(
    lines: Sequence[str], *, claim: str, key: str, measurements: tuple[Measurement, ...], threshold: str, advice: str
) -> Verdict:
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=key,
        measurements=measurements,
        threshold=threshold,
        threshold_source=_INTERFACE,
        smallest_detectable="exact",
        advice=advice,
        details=first_offenders(lines),
    )


def _failed(what: str, reply: Reply) -> str:
    return f"{what}: status {reply.status}{f', {reply.error}' if reply.error else ''}"


def _parting(ours: str, theirs: str) -> str:
    """Where two texts differ first, with what each has there."""
    place = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    return f"text parts at character {place}: {ours[place : place + 20]!r} instead of {theirs[place : place + 20]!r}"
