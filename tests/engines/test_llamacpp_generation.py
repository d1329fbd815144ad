"""Tokens, samplings and scores of llama.cpp, against transformers in the same precision."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.checkpoints.gguf_model import read_gguf
from pytest_llminfer.checkpoints.gguf_names import to_gguf
from pytest_llminfer.checkpoints.safetensors import read_checkpoint
from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.observations.generation import Generation, Sampling
from pytest_llminfer.verdict import Outcome
from tests.support.engines import llamacpp_engines
from tests.support.engines.llamacpp_engines import same, tensor
from tests.support.paths import REFERENCE
from tests.support.present import present

model, prompts, cache, start, fp16, answers, transformers, converted = (
    llamacpp_engines.model,
    llamacpp_engines.prompts,
    llamacpp_engines.cache,
    llamacpp_engines.start,
    llamacpp_engines.fp16,
    llamacpp_engines.answers,
    llamacpp_engines.transformers,
    llamacpp_engines.converted,
)


def test_tokens_equal_those_of_transformers(answers: list[Generation], transformers: list[Generation]) -> None:
    verdict = same(answers, transformers)
    assert verdict.outcome is Outcome.PASS, verdict
    for ours, theirs in zip(answers, transformers, strict=True):
        if ours.token_ids == theirs.token_ids:
            likely = present(theirs.top_logprobs) > -8
            np.testing.assert_allclose(present(ours.top_logprobs)[likely], present(theirs.top_logprobs)[likely], atol=0.05)
            np.testing.assert_allclose(present(ours.max_logit), present(theirs.max_logit), rtol=5e-3)


def test_rows_that_were_not_permuted_are_seen(
    start: Callable[..., Engine], converted: Path, prompts: list[list[int]], transformers: list[Generation], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(converted, broken)
    entry = read_gguf(broken).tensors["blk.0.attn_q.weight"]
    rows = tensor(converted, entry.name, 256 * 256)
    with broken.open("r+b") as stream:
        stream.seek(entry.offset)
        stream.write(rows.tobytes())
    verdict = same(start(broken).generate(prompts, max_tokens=100, logprobs=5), transformers)
    assert verdict.outcome is Outcome.FAIL


def test_bf16_is_the_choice_of_auto_and_bit_equal_to_the_checkpoint(
    start: Callable[..., Engine], cache: Path, prompts: list[list[int]], transformers: list[Generation]
) -> None:
    engine = start()
    assert engine.info.dtype == "bf16"
    (file,) = cache.glob("pytest-llminfer/gguf/*/model-bf16.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    stored, entry = read_checkpoint(REFERENCE)[name], read_gguf(file).tensors[present(to_gguf(name))]
    ours, theirs = (
        path.read_bytes()[offset : offset + stored.stored_bytes]
        for path, offset in ((file, entry.offset), (stored.file, stored.offset))
    )
    assert ours == theirs
    found = engine.generate(prompts, max_tokens=100, logprobs=5)
    verdict = check_same_greedy_tokens(candidate=found, reference=transformers, dtype="bf16", claim="the same tokens")
    assert verdict.outcome is Outcome.PASS, verdict


def test_a_gguf_file_is_loaded_as_it_is_and_must_be_what_the_cell_says(
    start: Callable[..., Engine], converted: Path, prompts: list[list[int]], answers: list[Generation]
) -> None:
    engine = start(converted)
    assert (engine.info.dtype, engine.info.end_token_ids) == ("fp16", (2,))
    assert engine.generate(prompts[:2], max_tokens=20)[1].token_ids == answers[1].token_ids[:20]
    with pytest.raises(BadInputError, match="is stored as f16, not quantization=q8_0; ask for quantization=none"):
        start(converted, quantization="q8_0")
    with pytest.raises(BadInputError, match="is stored as f16, not dtype=fp32"):
        start(converted, dtype="fp32")


def test_all_execution_modes_give_the_same_tokens(fp16: Engine, prompts: list[list[int]]) -> None:
    for cache_path in ("loop", "no_cache"):
        found = fp16.generate(prompts[:3], max_tokens=24, logprobs=5, cache_path=cache_path)
        batched = fp16.generate(prompts[:3], max_tokens=24, logprobs=5)
        verdict = same(found, batched)
        assert verdict.outcome is Outcome.PASS, verdict
        for one, other in zip(found, batched, strict=True):
            np.testing.assert_allclose(present(one.top_logprobs)[:, 0], present(other.top_logprobs)[:, 0], atol=0.02)


def test_answers_come_in_order_whatever_shares_the_cache(
    start: Callable[..., Engine], fp16: Engine, prompts: list[list[int]], answers: list[Generation]
) -> None:
    """One sequence at a time, few cells, and a batch shorter than a prompt give what sixteen sequences at once gave."""
    narrow = start(dtype="fp16", engine_args={"n_seq_max": 3, "n_ctx": 512, "n_batch": 48})
    assert narrow.settings()["resolved"]["context"]["n_seq_max"] == 3
    found = narrow.generate(prompts, max_tokens=100, logprobs=5)
    verdict = same(found, answers)
    assert verdict.outcome is Outcome.PASS, verdict
    backwards = fp16.generate(prompts[::-1], max_tokens=100, logprobs=5)[::-1]
    assert same(backwards, answers).outcome is Outcome.PASS
    assert len({answer.token_ids for answer in answers}) == len(prompts)


def test_an_answer_ends_with_an_end_token_or_at_the_limit(
    fp16: Engine, prompts: list[list[int]], answers: list[Generation]
) -> None:
    assert Counter(answer.finish_reason for answer in answers)["stop"] >= 10
    assert all(answer.token_ids[-1] == 2 for answer in answers if answer.finish_reason == "stop")
    (short,) = fp16.generate(prompts[:1], max_tokens=5)
    assert (short.token_ids, short.finish_reason) == (answers[0].token_ids[:5], "length")
    (longer,) = fp16.generate(prompts[:1], max_tokens=100, ignore_eos=True)
    assert (len(longer.token_ids), longer.finish_reason) == (100, "length")
    stop = answers[0].token_ids[7]
    (stopped,) = fp16.generate(prompts[:1], Sampling(max_tokens=50, stop_token_ids=(stop,)))
    assert stopped.token_ids == answers[0].token_ids[: answers[0].token_ids.index(stop) + 1]


def test_sampling_follows_its_seed_and_its_fields(fp16: Engine, prompts: list[list[int]], answers: list[Generation]) -> None:
    def drawn(count: int = 3, **fields: Any) -> list[Any]:
        return [answer.token_ids for answer in fp16.generate(prompts[:count], Sampling(max_tokens=40, **fields))]

    hot: dict[str, Any] = {"temperature": 4.0, "top_p": 0.999}
    assert drawn(seed=1, **hot) == drawn(seed=1, **hot) != drawn(seed=2, **hot)
    assert len({answer.token_ids for answer in fp16.generate([prompts[0]] * 3, Sampling(max_tokens=40, **hot))}) == 3
    greedy = [answer.token_ids[:40] for answer in answers[:3]]
    assert drawn(temperature=4.0, top_k=1) == drawn(temperature=4.0, top_p=1e-6) == greedy
    penalised = drawn(repetition_penalty=3.0)
    assert penalised != greedy
    assert sum(len(set(tokens)) / len(tokens) for tokens in penalised) > sum(len(set(tokens)) / len(tokens) for tokens in greedy)


def test_scores_by_prefill_and_by_decode_agree_with_the_generation(
    fp16: Engine, prompts: list[list[int]], answers: list[Generation]
) -> None:
    sequence = [*prompts[0], *answers[0].token_ids]
    (prefill,), (decode,) = (fp16.score([sequence], cache_path=cache_path) for cache_path in ("prefill", "decode"))
    assert prefill.shape == (len(sequence) - 1,)
    assert prefill.dtype == np.float32
    np.testing.assert_allclose(prefill, decode, atol=0.05)
    np.testing.assert_allclose(decode[len(prompts[0]) - 1 :], present(answers[0].top_logprobs)[:, 0], atol=0.05)
    long = (sequence * 20)[:1500]
    (pieces,) = fp16.score([long])
    np.testing.assert_allclose(pieces[: len(prefill)], prefill, atol=0.05)
    assert np.isfinite(pieces).all()


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        ([], {}, "has 0 tokens"),
        ([5, 1024], {}, "token id 1024; the vocabulary has the ids 0 to 1023"),
        ([5] * 2040, {}, "the model has 2048 positions"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(fp16: Engine, prompt: Any, fields: Any, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        fp16.generate([prompt], **fields)
