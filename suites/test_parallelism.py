"""Parallelism: several GPUs answer as one does, each holding its part; time and accuracy side by side.

A cell on one GPU is asked first and is the reference of those that are split: `--gpus=2`, or `--tp=1,2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.accuracy.check import check_accuracy_at_once
from pytest_llminfer.families.parallelism.check import check_rank_weights, check_ranks, check_reference_answers
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.predict.ranks import expected_rank_weights

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.accuracy.observe import Answered
    from pytest_llminfer.families.parallelism.observe import OneGpu, ParallelismTable
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.plugin.judging import Judge

same_model = pytest.mark.llminfer_only(draws_per_rank=False)
"""Where each rank draws its own dummy weights, a split model is another model."""


@same_model
@pytest.mark.llminfer_needs("generate:logprobs")
def test_greedy_tokens_are_those_of_one_gpu(engine: Engine, greedy: Greedy, one_gpu: OneGpu, judge: Judge) -> None:
    """Ties within rounding aside. On one GPU: those of each prompt alone, since a reference must repeat itself."""
    parallel = engine.spec.parallel
    reference = one_gpu.greedy.batched if parallel else greedy.one_by_one
    judge(
        check_same_greedy_tokens(
            candidate=greedy.batched,
            reference=reference,
            dtype=greedy.dtype,
            noise=max(greedy.noise, one_gpu.greedy.noise),
            claim=f"{' '.join(engine.spec.parallelism_words)} gives the tokens of one GPU"
            if parallel
            else "one GPU repeats its tokens",
        )
    )


@same_model
@pytest.mark.llminfer_only(has_tokenizer=True)
def test_accuracy_is_that_of_one_gpu(
    engine: Engine, answered: Answered, one_gpu: OneGpu, parallelism_table: ParallelismTable, judge: Judge
) -> None:
    """The same questions, paired. Time and accuracy go into the table at the end of the session."""
    parallelism_table.add(answered)
    if engine.spec.parallel:
        judge(check_accuracy_at_once(answers=answered.answers, recorded=one_gpu.recorded))
    else:
        judge(check_reference_answers(answers=answered.answers))


@pytest.mark.llminfer_needs("ranks")
def test_every_rank_is_there(engine: Engine, judge: Judge) -> None:
    """As many processes as dp x pp x tp, each on a GPU of its own."""
    spec = engine.spec
    judge(check_ranks(ranks=engine.ranks(), tp=spec.tp, pp=spec.pp, dp=spec.dp))


@pytest.mark.llminfer_only(parallel=True)
@pytest.mark.llminfer_needs("ranks")
def test_every_rank_holds_its_share_of_the_weights(engine: Engine, judge: Judge) -> None:
    """A rank that held all of them would give the right tokens too."""
    spec = engine.spec
    expected = expected_rank_weights(
        shape=engine.model.shape,
        dtype=engine.info.dtype,
        quantization=spec.quantization,
        engine=profile(spec.engine),
        tp=spec.tp,
        pp=spec.pp,
        plan=engine.settings()["resolved"].get("tp_plan") or (),
    )
    judge(check_rank_weights(ranks=engine.ranks(), expected=expected, engine=profile(spec.engine)))
