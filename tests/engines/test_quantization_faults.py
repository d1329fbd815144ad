"""What test_quantization.py claims, of a real nf4 model: true of it as it is, and false once it is given a fault."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from pytest_llminfer.checks.float_formats import check_casts, drawn
from pytest_llminfer.checks.quantization import check_against_best, check_codebook, check_loss_of_weights, check_round_trip
from pytest_llminfer.checks.resaved import check_resaved
from pytest_llminfer.checks.training import check_one_step
from pytest_llminfer.experiments import experiment
from pytest_llminfer.models.float_formats import FORMATS
from pytest_llminfer.verdict import Outcome

WORKERS = runpy.run_path(str(Path(__file__).with_name("transformers_workers.py")))
REFERENCE, start = (WORKERS[name] for name in ("REFERENCE", "start"))
FAULTS = Path(__file__).with_name("quantization_faults.py")
NORMAL = np.random.default_rng(1).standard_normal((64, 4096)).astype(np.float32)
SHARD = 1 << 20


class Cell:
    """A loaded nf4 model, and the suite's claims about it."""

    def __init__(self, worker) -> None:
        self._worker = worker
        worker.load(quantization="nf4")

    def run(self, probe, **arguments):
        path, _, function = probe.partition("::")
        return self._worker.ask("run", path=path, function=function, arguments=arguments)["result"]

    def judge(self, claim):
        return getattr(self, claim)()

    def round_trip(self):
        stored = self.run(experiment("formats.round_trip"), values=NORMAL)
        return check_round_trip(values=NORMAL, read=stored["values"], name="nf4", block=stored["block_size"], declared=64)

    def best(self):
        stored = self.run(experiment("formats.round_trip"), values=NORMAL)
        return check_against_best(values=NORMAL, read=stored["values"], name="nf4", block=64)

    def weights(self):
        found = self.run(experiment("formats.against_checkpoint"), path=str(REFERENCE))
        assert len(found) == 28
        return check_loss_of_weights(found=found, name="nf4", block=64)

    def codes(self):
        return check_codebook(found=self.run(experiment("formats.codebook")), name="nf4")

    def casts(self):
        numbers = drawn(5_000, 1)
        return check_casts(numbers=numbers, found=self.run(experiment("formats.casts"), numbers=numbers, names=list(FORMATS)))

    def step(self):
        return check_one_step(step=self.run(experiment("training.one_step"), tokens=list(range(5, 60))))

    def resaved(self):
        tokens = list(range(5, 40))
        return check_resaved(
            saved=self.run(experiment("checkpoints.save_and_reload"), tokens=tokens, shard_bytes=SHARD), shard_bytes=SHARD
        )


CLAIMS = ("round_trip", "best", "weights", "codes", "casts", "step", "resaved")


@pytest.fixture(scope="module")
def cell(start):
    """One worker for all tests of this file: each fault comes on top of those before, judged by a claim that they leave alone."""
    return Cell(start())


def test_all_claims_are_true_of_a_model_as_it_is_and_leave_it_as_it_was(cell) -> None:
    first = {claim: cell.judge(claim) for claim in CLAIMS}
    assert {claim: verdict.outcome for claim, verdict in first.items()} == dict.fromkeys(CLAIMS, Outcome.PASS)
    assert cell.judge("weights") == first["weights"]
    assert cell.judge("resaved").outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("fault", "claim", "says"),
    [
        ("freeze_a_norm", "step", "model.norm.weight is not quantized and did not move"),
        ("lose_a_norm", "resaved", "the logits differ"),
        ("leave_a_layer_alone", "weights", "model.layers.2.mlp.up_proj: 0.0000, as if it was not quantized"),
        ("scale_a_layer", "weights", "model.layers.1.self_attn.v_proj: "),
        ("larger_blocks", "round_trip", "blocks of 128, declared are 64"),
        ("swap_codes", "codes", "a value differs from the definition"),
        ("flush_subnormals", "casts", "became 0.0 in"),
        ("round_towards_zero", "casts", "0.1234000027179718 became 0.123046875 in bfloat16, not 0.12353515625"),
    ],
)
def test_a_fault_is_caught_and_named(cell, fault: str, claim: str, says: str) -> None:
    cell.run(f"{FAULTS}::{fault}")
    verdict = cell.judge(claim)
    assert verdict.outcome is Outcome.FAIL
    assert says in str(verdict)
