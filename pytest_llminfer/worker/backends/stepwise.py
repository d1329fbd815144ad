"""Cache path ``no_cache`` for engines that only generate: the whole prefix recomputed for every token, all prompts side by
side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    Step = Callable[[list[list[int]], int], list[dict[str, Any]]]
    Progress = Callable[[str, int, int], None]

_STACKED = ("top_ids", "top_logprobs", "max_logit")


def generate_without_cache(
    step: Step,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_token_ids: Collection[int],
    *,
    logprobs: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Fields of ``Generation``, one answer a prompt, in order.

    step: called with the prefixes (prompt and tokens so far) that are not finished, and ``logprobs``; gives one answer a prefix, in
    order, of exactly one token each, computed with no cache of earlier steps. Arrays of the steps, (1, k) or (1,), are put one
    after another. end_token_ids: those that end an answer; none of them is left out of it.

    cached_tokens of an answer is the most that any of its steps took from a prefix cache: 0 proves that nothing was cached, None
    means that the engine does not say.
    """
    prefixes = [list(prompt) for prompt in prompts]
    steps: list[list[dict[str, Any]]] = [[] for _ in prompts]
    going = list(range(len(prefixes)))
    for number in range(max_tokens):
        if not going:
            break
        answers = step([list(prefixes[index]) for index in going], logprobs)
        for index, answer in zip(going, answers, strict=True):
            (token,) = answer["token_ids"]
            prefixes[index].append(int(token))
            steps[index].append(answer)
        going = [index for index in going if prefixes[index][-1] not in end_token_ids]
        if progress is not None:
            progress("generating", number + 1, max_tokens)
    return [_join(answers, end_token_ids) for answers in steps]


def _join(answers: list[dict[str, Any]], end_token_ids: Collection[int]) -> dict[str, Any]:
    token_ids = [int(answer["token_ids"][0]) for answer in answers]
    joined: dict[str, Any] = {
        "token_ids": token_ids,
        "finish_reason": "stop" if token_ids and token_ids[-1] in end_token_ids else "length",
    }
    for name in _STACKED:
        if answers and all(answer.get(name) is not None for answer in answers):
            import numpy as np

            joined[name] = np.concatenate([answer[name] for answer in answers])
    cached = [answer["cached_tokens"] for answer in answers if answer.get("cached_tokens") is not None]
    if answers and len(cached) == len(answers):
        joined["cached_tokens"] = max(cached)
    return joined
