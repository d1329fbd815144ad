"""From an engine's reply to what it is worth, and to a row that a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets import gsm8k
from pytest_llminfer.families.accuracy.grading import Answer, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.datasets.gsm8k import Problem


def grade(problem: Problem, reply: Reply, extractors: Mapping[str, str] = gsm8k.EXTRACTORS) -> Answer:
    """What a reply is worth, read by these versions of the two readings."""
    graded = gsm8k.grade(problem, reply.text, extractors)
    return Answer(
        strict=graded.strict,
        flexible=graded.flexible,
        format_miss=graded.format_miss,
        truncated=reply.truncated,
        tokens=reply.tokens,
        off_argmax=reply.off_argmax,
        unlikely=reply.unlikely,
    )


def show(problem: Problem, reply: Reply, extractors: Mapping[str, str] = gsm8k.EXTRACTORS) -> dict[str, Any]:
    """A question, the reply to it and what became of both, as plain data; numbers as text, None where none was read."""
    graded = gsm8k.grade(problem, reply.text, extractors)
    read = {"strict": graded.read_strict, "flexible": graded.read_flexible}
    return {
        "question_id": problem.id,
        "question": problem.question,
        "text": reply.text,
        "gold": f"{gsm8k.gold(problem, extractors):f}",
        **{name: None if number is None else f"{number:f}" for name, number in read.items()},
        "strict_right": graded.strict,
        "flexible_right": graded.flexible,
        "truncated": reply.truncated,
        "extractors": dict(extractors),
    }
