"""Quantized weights: really in the format, with the values and the blocks that it declares, and weights that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_llminfer.families.probes import bundled_probe
from pytest_llminfer.families.quantization.casts import check_casts, drawn
from pytest_llminfer.families.quantization.check import (
    check_against_best,
    check_codebook,
    check_double_quantization,
    check_loss_of_weights,
    check_near_normal,
    check_round_trip,
)
from pytest_llminfer.families.quantization.resaved import check_resaved
from pytest_llminfer.families.quantization.training import check_one_step
from pytest_llminfer.numerics.float_formats import FORMATS

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.judging import Judge

SEED = 20260101
BLOCK = 64
"""Of nf4 and fp4, as transformers asks bitsandbytes for them."""

pytestmark = [pytest.mark.llminfer_only(engine="transformers", parallel=False), pytest.mark.llminfer_needs("run")]
four_bits = pytest.mark.llminfer_only(quantization=("nf4", "fp4"))
bitsandbytes = pytest.mark.llminfer_only(quantization=("int8", "nf4", "fp4"))
has_checkpoint = pytest.mark.llminfer_only(weights="real")


@pytest.fixture(scope="session")
def normal() -> np.ndarray:
    """Normal numbers (256, 4096), float32: 1,048,576 of them put 0.1 % of noise on an error."""
    return np.random.default_rng(SEED).standard_normal((256, 4096)).astype(np.float32)


@pytest.fixture(scope="session")
def stored(engine: Engine, normal: np.ndarray) -> dict[str, Any]:
    """Those numbers as a linear of this cell multiplies by them."""
    return dict(engine.run(bundled_probe("quantization.formats.round_trip"), values=normal))


@bitsandbytes
def test_numbers_come_back_with_the_error_of_the_format(
    engine: Engine, normal: np.ndarray, stored: dict[str, Any], judge: Judge
) -> None:
    """Neither more nor less than the format's definition loses of normal numbers."""
    name = engine.spec.quantization
    declared = None if name == "int8" else BLOCK
    judge(check_round_trip(values=normal, read=stored["values"], name=name, block=stored["block_size"], declared=declared))


@bitsandbytes
@has_checkpoint
def test_every_linear_lost_what_its_format_loses(engine: Engine, judge: Judge) -> None:
    """Against the checkpoint's own weights: a layer that was left alone has lost nothing."""
    found = engine.run(bundled_probe("quantization.formats.against_checkpoint"), path=str(engine.model.folder))
    name = engine.spec.quantization
    judge(check_loss_of_weights(found=found, name=name, block=None if name == "int8" else BLOCK))


@four_bits
def test_codes_are_those_of_the_definition(engine: Engine, judge: Judge) -> None:
    """The 16 values of nf4 are quantiles of the normal distribution; every code is used."""
    judge(check_codebook(found=engine.run(bundled_probe("quantization.formats.codebook")), name=engine.spec.quantization))


@four_bits
def test_error_beside_the_best_sixteen_values(engine: Engine, normal: np.ndarray, stored: dict[str, Any], judge: Judge) -> None:
    """No 16 values lose less than those that k-means finds; the format loses as much more as its codebook implies."""
    judge(check_against_best(values=normal, read=stored["values"], name=engine.spec.quantization, block=BLOCK))


@four_bits
def test_double_quantization_costs_next_to_nothing(engine: Engine, normal: np.ndarray, judge: Judge) -> None:
    """It saves 0.373 bits a weight."""
    plain, double = (
        engine.run(bundled_probe("quantization.formats.round_trip"), values=normal, double_quantized=each) for each in (False, True)
    )
    judge(check_double_quantization(plain=plain, double=double, values=normal))


@pytest.mark.llminfer_only(quantization="none")
def test_weights_are_near_normal(engine: Engine, judge: Judge) -> None:
    """What NF4 assumes of the weights that it stores: a histogram of every linear, and which are far from a normal one.

    Those are named and pass; a linear of equal numbers, or of some that are not finite, fails.
    """
    judge(check_near_normal(found=engine.run(bundled_probe("quantization.formats.weights"))))


@pytest.mark.llminfer_only(quantization="none")
def test_numbers_are_cast_as_the_formats_define(engine: Engine, judge: Judge) -> None:
    """Over all magnitudes, subnormal and infinite ones included, on the device that computes."""
    numbers = drawn(20_000, SEED)
    judge(
        check_casts(
            numbers=numbers, found=engine.run(bundled_probe("quantization.formats.casts"), numbers=numbers, names=list(FORMATS))
        )
    )


@bitsandbytes
def test_one_step_moves_what_is_not_quantized(engine: Engine, judge: Judge) -> None:
    """Quantized weights have no gradient and stay; norms and embeddings move; the loss is finite."""
    judge(check_one_step(step=engine.run(bundled_probe("quantization.training.one_step"), tokens=engine.model.prompts(1)[0])))


@has_checkpoint
def test_a_saved_model_is_the_same_model(engine: Engine, judge: Judge) -> None:
    """Saved in shards with an index, and loaded again: bit-equal logits. Random weights would only fill the disk."""
    # A tenth of the model: several files, whatever its size.
    shard_bytes = max(1 << 20, engine.memory().weights_bytes // 10)
    tokens = engine.model.prompts(1)[0]
    judge(
        check_resaved(
            saved=engine.run(bundled_probe("quantization.checkpoints.save_and_reload"), tokens=tokens, shard_bytes=shard_bytes),
            shard_bytes=shard_bytes,
        )
    )
