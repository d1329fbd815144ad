"""What test_quantization.py claims, of a real nf4 model: true of it as it is, and false once it is given a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.layout.checkpoint import check_checkpoint
from pytest_llminfer.families.probes import bundled_probe
from pytest_llminfer.families.quantization.casts import check_casts, drawn
from pytest_llminfer.families.quantization.check import check_against_best, check_codebook, check_loss_of_weights, check_round_trip
from pytest_llminfer.families.quantization.resaved import check_resaved
from pytest_llminfer.families.quantization.training import check_one_step
from pytest_llminfer.models.stored import read_stored
from pytest_llminfer.numerics.float_formats import FORMATS
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.engines import transformers_workers
from tests.support.engines.transformers_workers import Worker
from tests.support.faults import checkpoints
from tests.support.paths import FAULTS as FOLDER
from tests.support.paths import REFERENCE

start = transformers_workers.start
FAULTS = FOLDER / "quantized_weights.py"
NORMAL = np.random.default_rng(1).standard_normal((64, 4096)).astype(np.float32)
SHARD = 1 << 20


class Cell:
    """A loaded nf4 model, and the suite's claims about it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        worker.load(quantization="nf4")

    def run(self, probe: str, **arguments: Any) -> Any:
        path, _, function = probe.partition("::")
        return self._worker.ask("run", path=path, function=function, arguments=arguments)["result"]

    def judge(self, claim: str) -> Any:
        return getattr(self, claim)()

    def round_trip(self) -> Verdict:
        stored = self.run(bundled_probe("quantization.formats.round_trip"), values=NORMAL)
        return check_round_trip(values=NORMAL, read=stored["values"], name="nf4", block=stored["block_size"], declared=64)

    def best(self) -> Verdict:
        stored = self.run(bundled_probe("quantization.formats.round_trip"), values=NORMAL)
        return check_against_best(values=NORMAL, read=stored["values"], name="nf4", block=64)

    def weights(self) -> Verdict:
        found = self.run(bundled_probe("quantization.formats.against_checkpoint"), path=str(REFERENCE))
        assert len(found) == 28
        return check_loss_of_weights(found=found, name="nf4", block=64)

    def codes(self) -> Verdict:
        return check_codebook(found=self.run(bundled_probe("quantization.formats.codebook")), name="nf4")

    def casts(self) -> Verdict:
        numbers = drawn(5_000, 1)
        return check_casts(
            numbers=numbers, found=self.run(bundled_probe("quantization.formats.casts"), numbers=numbers, names=list(FORMATS))
        )

    def step(self) -> Verdict:
        return check_one_step(step=self.run(bundled_probe("quantization.training.one_step"), tokens=list(range(5, 60))))

    def resaved(self) -> Verdict:
        tokens = list(range(5, 40))
        return check_resaved(
            saved=self.run(bundled_probe("quantization.checkpoints.save_and_reload"), tokens=tokens, shard_bytes=SHARD),
            shard_bytes=SHARD,
        )


CLAIMS = ("round_trip", "best", "weights", "codes", "casts", "step", "resaved")


@pytest.fixture(scope="module")
def cell(start: Callable[..., Worker]) -> Cell:
    """One worker for all tests of this file: each fault comes on top of those before, judged by a claim that they leave alone."""
    return Cell(start())


def test_all_claims_are_true_of_a_model_as_it_is_and_leave_it_as_it_was(cell: Cell) -> None:
    first = {claim: cell.judge(claim) for claim in CLAIMS}
    assert {claim: verdict.outcome for claim, verdict in first.items()} == dict.fromkeys(CLAIMS, Outcome.PASS)
    assert cell.judge("weights") == first["weights"]
    assert cell.judge("resaved").outcome is Outcome.PASS


@pytest.fixture(scope="module")
def saved(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The reference model in each format of bitsandbytes, on disk; made before anything is given a fault."""
    folder = tmp_path_factory.mktemp("bitsandbytes")
    names = cell.run(f"{FAULTS}::save_in_every_format", path=str(REFERENCE), folder=str(folder))
    return {name: folder / name for name in names}


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("int8", {"int8": 3_145_728, "uint8": 28, "float32": 40_960}),
        ("nf4", {"uint8": 1_572_864, "float32": 196_608 + 28 * 64}),
        ("nf4-double", {"uint8": 1_572_864 + 49_152, "float32": 28 * (64 + 1024) + 4 * 192}),
        ("fp4", {"uint8": 1_572_864, "float32": 196_608 + 28 * 64}),
    ],
)
def test_a_checkpoint_of_bitsandbytes_is_stored_as_it_declares_and_named_where_it_is_not(
    saved: Any, name: str, stored: dict[str, int], tmp_path: Path
) -> None:
    layout, *notes = check_checkpoint(read_stored(saved[name]))
    assert (layout.outcome, layout.details) == (Outcome.PASS, ())
    held = {each.name.removeprefix("stored in "): each.value for each in layout.measurements}
    assert {dtype: held.get(dtype) for dtype in stored} == stored
    assert [(each.outcome, each.key) for each in notes] == [(Outcome.PASS, "28 notes")] * (name != "int8")
    left = check_checkpoint(read_stored(checkpoints.leave_a_layer_alone(saved[name], tmp_path / "left")))
    assert [each.outcome for each in left] == [Outcome.FAIL] * (1 + len(notes))
    assert len(left[0].details) == 1
    assert (
        left[0].details[0].startswith(f"{checkpoints.LEFT}.weight: left in bfloat16 instead of {name.partition('-')[0]} (weight, ")
    )
    assert all(each.details == (f"{checkpoints.LEFT}.weight: no note of how it is unpacked",) for each in left[1:])


def test_another_4_bit_format_of_the_same_bytes_is_named_by_its_note(saved: Any, tmp_path: Path) -> None:
    mixed = checkpoints.take_a_layer_from(saved["fp4"], saved["nf4"], tmp_path / "mixed")
    layout, notes = check_checkpoint(read_stored(mixed))
    assert layout.outcome is Outcome.PASS
    assert notes.details == (f"{checkpoints.LEFT}.weight: noted with quant_type fp4 instead of nf4",)


def test_scales_that_are_not_quantized_although_declared_so_are_named(saved: Any, tmp_path: Path) -> None:
    declared = checkpoints.declare(saved["nf4"], tmp_path / "declared", bnb_4bit_use_double_quant=True)
    layout, notes = check_checkpoint(read_stored(declared))
    assert "self_attn.q_proj.weight.nested_absmax (and the same in 3 other layers): missing" in str(layout)
    assert "noted with nested_blocksize None instead of 256" in str(notes)
    undeclared = checkpoints.declare(saved["nf4-double"], tmp_path / "undeclared", bnb_4bit_use_double_quant=False)
    layout, notes = check_checkpoint(read_stored(undeclared))
    assert (layout.outcome, notes.outcome) == (Outcome.FAIL, Outcome.FAIL)


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
def test_a_fault_is_caught_and_named(cell: Cell, fault: str, claim: str, says: str) -> None:
    cell.run(f"{FAULTS}::{fault}")
    verdict = cell.judge(claim)
    assert verdict.outcome is Outcome.FAIL
    assert says in str(verdict)
