"""Hashes of what was asked, so that two runs are compared only if they asked the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llminfer.datasets.gsm8k import Problem


def fingerprint(parts: Iterable[str]) -> str:
    """sha256 of the parts in their order, each with its length before it, so that no two lists run into each other."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(raw)}:".encode())
        digest.update(raw)
    return digest.hexdigest()


def items_sha256(problems: Iterable[Problem]) -> str:
    """sha256 of ids, questions and answers, in their order."""
    return fingerprint(field for problem in problems for field in (problem.id, problem.question, problem.answer))


def prompts_sha256(prompts: Iterable[str | Sequence[int]]) -> str:
    """sha256 of prompts as they are sent, as text or as token ids, in their order."""
    return fingerprint(f"text:{prompt}" if isinstance(prompt, str) else f"ids:{','.join(map(str, prompt))}" for prompt in prompts)
