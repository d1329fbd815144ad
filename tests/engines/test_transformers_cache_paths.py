"""Ways through the KV cache of transformers: benign ones agree, wrong ones do not, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.transformers.backend import TransformersBackend
from pytest_llminfer.worker.protocol.cache_paths import CachePath
from tests.support.cache_paths import BENIGN, HOLE, LATE, SHAPES, SLIDING, TOKENS, WINDOW, sequences
from tests.support.engines import faulty_transformers
from tests.support.present import present

engine, faulty = faulty_transformers.engine, faulty_transformers.faulty
LIMIT = 1e-8
"""Mean KL in fp32 (docs/methods.md#fp32-structure); on these shapes at most 6e-12 by a benign cache path, at least 5e-4 with a
fault."""


def of(engine: Engine, cache_path: CachePath, shape: str | None = None, **asked: Any) -> Any:
    """The comparison of one sequence with prefill: of a random model in fp32, or of the reference model."""
    config = SHAPES[shape] if shape else None
    found = engine.compare_cache_paths(sequences(TOKENS), candidate=cache_path, config=config, **asked)
    return found.sequences[0], found.cache


def largest(errors: npt.NDArray[Any]) -> Any:
    """Per layer, over heads and positions that both hold."""
    return np.nanmax(errors, axis=(1, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_benign_cache_paths_agree_with_prefill_in_fp32(engine: Engine, shape: str) -> None:
    cache_paths = BENIGN if shape in SLIDING else (*BENIGN, HOLE)
    for cache_path in cache_paths:
        found = engine.compare_cache_paths(sequences(TOKENS, TOKENS), candidate=cache_path, config=SHAPES[shape]).sequences
        for one in found:
            assert one.kl.mean() <= LIMIT, cache_path
            assert one.top1.all(), cache_path
            if cache_path.cache == "none":
                assert np.isnan(one.key_error).all()
                continue
            bound = 40 * 6e-8 * np.sqrt(np.arange(len(one.lengths)) + 1)  # docs/methods.md#rounding-limits
            assert (largest(one.key_error) <= bound).all(), cache_path
            assert (largest(one.value_error) <= bound).all(), cache_path
            kept = np.isfinite(one.value_error).all(axis=1)
            assert np.array_equal(present(one.nearest_position), np.where(kept, np.arange(TOKENS), -1)), cache_path
            heads = np.arange(present(one.nearest_head).shape[1])[:, None]
            assert np.array_equal(present(one.nearest_head), np.where(kept[:, None], heads, -1)), cache_path


@pytest.mark.parametrize("cache_path", [*BENIGN[1:], HOLE], ids=str)
def test_the_first_layer_is_equal_to_the_last_place_in_bf16(engine: Engine, cache_path: CachePath) -> None:
    found, _ = of(engine, cache_path)
    assert found.dtype == "bf16"
    assert np.nanmax(found.key_ulps) <= 1
    assert np.nanmax(found.value_ulps) <= 1


def test_sequences_of_a_request_are_each_others_neighbours(engine: Engine) -> None:
    ids = sequences(40, 64, 23)
    for cache_path in (CachePath(batch=4), CachePath(batch=3, pads_right=1), CachePath(batch=3, pads_left=2, beams=2)):
        found = engine.compare_cache_paths(ids, candidate=cache_path, config=SHAPES["llama"])
        assert [len(one.kl) for one in found.sequences] == [40, 64, 23]
        assert all(one.kl.mean() <= LIMIT for one in found.sequences)
        assert present(found.cache).key_shapes[0][0] == cache_path.batch * cache_path.beams


def test_a_model_depends_on_its_seed_and_dtype_alone(engine: Engine) -> None:
    quantized = CachePath(cache="fp8", chunks=LATE)
    first = of(engine, quantized, "llama", seed=1)[0].kl
    other = of(engine, quantized, "llama", seed=2)[0].kl
    again = of(engine, quantized, "llama", seed=1)[0].kl
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert of(engine, CachePath(chunks=LATE), "llama", dtype="bf16")[0].dtype == "bf16"
    # In bf16 noise is far above the limit for fp32 (docs/methods.md#fp32-structure).
    assert of(engine, CachePath(chunks=LATE), "llama", dtype="bf16")[0].kl.mean() > 1e-5


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen2"])
def test_a_quantized_cache_errs_as_its_bits_say(engine: Engine, shape: str) -> None:
    """Within half and one and a half of theory for normal values: an error that is too small means that nothing was quantized.

    e4m3 rounds 1 to 2 in steps of 1/8, which over a binade is 0.0266 of the value (root mean square); groups of n values span
    4.14 (n = 32) or 4.74 (64) of their standard deviation, in 2^bits - 1 steps.
    """
    span = 4.14 if shape == "llama" else 4.74
    plain, _ = of(engine, CachePath(chunks=LATE), shape)
    for cache_path, dtype, expected in (
        (CachePath(cache="fp8", chunks=LATE), "fp8", 0.0266),
        (CachePath(cache="quantized", chunks=(30, 30, 1, 1, 1, 1), residual=30), "int4", span / 15 / 12**0.5),
        (CachePath(cache="quantized", cache_bits=2, chunks=(30, 30, 1, 1, 1, 1), residual=30), "int2", span / 3 / 12**0.5),
    ):
        found, cache = of(engine, cache_path, shape)
        assert found.dtype == dtype
        assert set(cache.dtypes) == {dtype}
        packed = slice(0, 30)
        for errors in (found.key_error[0, :, packed], found.value_error[0, :, packed]):
            size = np.sqrt(np.mean(errors**2))
            assert 0.5 * expected < size < 1.5 * expected, cache_path
        assert found.kl[:30].max() <= LIMIT
        assert found.kl.mean() > 1e6 * plain.kl.mean()
        if dtype == "fp8":
            scales, size = np.array(cache.scales), np.array(cache.largest)
            np.testing.assert_allclose(size / scales, 448, rtol=1e-6)
        else:
            assert cache.residual == (4, 4)
            assert len(found.lengths) == 2
            assert set(found.lengths) == {TOKENS}


def test_a_cache_has_the_shape_and_bytes_of_its_tokens(engine: Engine) -> None:
    _, dynamic = of(engine, CachePath(chunks=LATE, pads_left=2), "llama")
    assert dynamic.key_shapes == dynamic.value_shapes == ((1, 2, TOKENS + 2, 16),) * 2
    assert dynamic.stored_bytes == (2 * 2 * (TOKENS + 2) * 16 * 4,) * 2
    assert dynamic.sliding == (0, 0)
    _, half = of(engine, CachePath(chunks=LATE), "llama", dtype="fp16")
    assert half.dtypes == ("fp16", "fp16")
    assert half.stored_bytes == (2 * 2 * TOKENS * 16 * 2,) * 2
    _, static = of(engine, CachePath(cache="static", spare=5), "gpt2")
    assert static.key_shapes == ((1, 4, TOKENS + 5, 32),) * 2
    _, fp8 = of(engine, CachePath(cache="fp8", chunks=LATE), "gpt2")
    assert fp8.stored_bytes == (2 * (4 * TOKENS * 32 + 4),) * 2
    _, served = of(engine, CachePath(batch=2, beams=3, chunks=LATE))
    assert served.key_shapes == ((6, 2, TOKENS, 64),) * 4


def test_layers_with_a_window_keep_what_the_next_token_sees(engine: Engine) -> None:
    found, dynamic = of(engine, CachePath(chunks=LATE), "gemma3")
    assert dynamic.sliding == (WINDOW, 0, WINDOW, 0)
    assert found.lengths == (WINDOW - 1, TOKENS, WINDOW - 1, TOKENS)
    assert [shape[2] for shape in dynamic.key_shapes] == list(found.lengths)
    found, static = of(engine, CachePath(cache="static", chunks=LATE), "gemma3")
    assert static.sliding == (WINDOW, 0, WINDOW, 0)
    assert found.lengths == (WINDOW, TOKENS, WINDOW, TOKENS)
    # Both hold only what the shorter one does.
    assert np.isfinite(found.key_error[0]).sum(axis=1).tolist() == [WINDOW - 1] * 2


REFUSED = [
    (CachePath(cache="static", crop=20, crop_extra=3), "llama", UnsupportedError, "cannot crop StaticLayer"),
    (CachePath(cache="quantized", crop=20, crop_extra=3), "llama", UnsupportedError, "cannot crop QuantoQuantizedLayer"),
    (CachePath(cache="fp8", crop=20, crop_extra=3), "llama", UnsupportedError, "cannot crop Fp8QuantizedLayer"),
    (CachePath(cache="quantized", prefix=20), "llama", UnsupportedError, "transformers refuses"),
    (CachePath(cache="fp8"), "gemma3", UnsupportedError, "only full attention layers"),
    (HOLE, "gemma3", UnsupportedError, "counts a window .33. in columns"),
    (CachePath(cache="quantized", cache_bits=3), "llama", UnsupportedError, "nbits"),
    (CachePath(chunks=(30, 30)), "llama", BadInputError, "chunks of 60 tokens"),
    (CachePath(crop=20), "llama", BadInputError, "belong together"),
    (CachePath(prefix=TOKENS), "llama", BadInputError, "prefix"),
    (CachePath(batch=0), "llama", BadInputError, "at least 1"),
    (CachePath(cache="paged"), "llama", BadInputError, "unknown cache 'paged'"),
    (CachePath(crop=60, crop_extra=200), "gpt2", BadInputError, "260 positions, and the model has 256"),
]


@pytest.mark.parametrize(("cache_path", "shape", "error", "words"), REFUSED)
def test_what_cannot_be_is_refused_in_words(
    engine: Engine, cache_path: CachePath, shape: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        of(engine, cache_path, shape)


def test_a_configuration_or_dtype_that_cannot_be_is_refused(engine: Engine) -> None:
    ids = sequences(8)
    with pytest.raises(BadInputError, match="no model_type 'lama'"):
        engine.compare_cache_paths(ids, candidate=CachePath(), config={"model_type": "lama"})
    with pytest.raises(BadInputError, match="fp8"):
        engine.compare_cache_paths(ids, candidate=CachePath(), config=SHAPES["llama"], dtype="fp8")
    with pytest.raises(UnsupportedError, match="dtype=fp32"):
        engine.compare_cache_paths(ids, candidate=CachePath(), dtype="fp32")
    with pytest.raises(BadInputError, match="token id 600"):
        engine.compare_cache_paths([[600]], candidate=CachePath(), config=SHAPES["llama"])


def test_a_model_split_over_ranks_refuses_to_compare_cache_paths() -> None:
    backend = TransformersBackend(EngineSpec("transformers", tp=2), "", {}, lambda *_: None)
    with pytest.raises(UnsupportedError, match="tp=1"):
        backend.compare_cache_paths(sequences=[[1]], candidate={}, reference={})


CROPPED = CachePath(chunks=LATE, crop=40, crop_extra=4)
SHARED = CachePath(chunks=LATE, prefix=40)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("fault", "cache_path"),
    [
        ("wrong_block", CachePath(chunks=LATE)),
        ("wrong_block", CachePath(cache="static", chunks=LATE)),
        ("swapped_heads", CachePath(chunks=LATE)),
        ("unscaled_fp8", CachePath(chunks=LATE)),
        ("shifted_after_crop", CROPPED),
        ("stale_prefix", SHARED),
        ("stale_prefix", CachePath(cache="static", chunks=LATE, prefix=40)),
        ("long_window", CachePath(chunks=LATE)),
        ("long_window", CachePath(cache="static", chunks=LATE)),
        ("unmasked_pads", CachePath(chunks=LATE, pads_left=5)),
    ],
)
def test_a_fault_shows_far_above_the_noise(engine: Engine, faulty: Any, shape: str, fault: str, cache_path: CachePath) -> None:
    sound, kept = of(engine, cache_path, shape)
    faulty(fault)
    found, cache = of(engine, cache_path, shape)
    if fault == "long_window" and shape not in SLIDING:
        np.testing.assert_array_equal(found.kl, sound.kl)
        return
    assert sound.kl.mean() <= LIMIT
    assert found.kl.mean() > (1e-3 if fault != "unscaled_fp8" else 1e-4)
    first = {name: np.nanmax(getattr(found, f"{name}_error")[0]) for name in ("key", "value")}
    moved = [np.flatnonzero((row >= 0) & (row != np.arange(TOKENS))).tolist() for row in found.nearest_position]
    if fault == "wrong_block":
        assert moved[1] == list(range(16, 32))
        assert found.nearest_position[1, 16:32].tolist() == list(range(16))
        assert max(first.values()) < 1e-6
    if fault == "swapped_heads":
        assert first["value"] < 1e-6
        assert found.nearest_head[0, :2, -1].tolist() == [1, 0]
    if fault == "shifted_after_crop":
        # Positions of GPT-2 are learned and added to what values are made of; rotations touch keys alone.
        assert first["key"] > 0.1
        assert (first["value"] > 0.1) == (shape == "gpt2")
        assert found.kl[:40].max() <= LIMIT
    if fault == "stale_prefix":
        assert found.kl[:40].max() <= LIMIT
        wrong = np.flatnonzero(found.value_error[1, 0] > 0.1)
        assert wrong[0] == 38
    if fault == "long_window":
        assert (np.array(cache.key_shapes)[:, 2] - np.array(kept.key_shapes)[:, 2]).tolist() == [1, 0, 1, 0]
        assert max(first.values()) < 1e-6
    if fault == "unmasked_pads":
        assert max(first.values()) < 1e-6
    if fault == "unscaled_fp8":
        assert 0.01 < first["key"] < 0.0625


def test_the_scale_of_an_fp8_cache_tells_whether_it_was_measured(engine: Engine, faulty: Any) -> None:
    cache_path = CachePath(cache="fp8", chunks=LATE)
    _, sound = of(engine, cache_path, "llama")
    faulty("unscaled_fp8")
    _, cache = of(engine, cache_path, "llama")
    assert max(map(max, sound.scales)) < 0.1
    assert cache.scales == ((1.0, 1.0),) * 2
    assert max(map(max, cache.largest)) < 448


@pytest.mark.parametrize(
    ("fault", "cache_path", "keys", "values"),
    [
        ("swapped_heads", CachePath(chunks=LATE), True, False),
        ("shifted_after_crop", CROPPED, True, False),
        ("stale_prefix", SHARED, True, True),
        ("unscaled_fp8", CachePath(chunks=LATE), True, True),
    ],
)
def test_a_fault_of_the_served_model_shows_in_its_first_layer(
    engine: Engine, faulty: Any, fault: str, cache_path: CachePath, keys: bool, values: bool
) -> None:
    faulty(fault)
    found, _ = of(engine, cache_path)
    assert (np.nanmax(found.key_ulps) > 4) == keys
    assert (np.nanmax(found.value_ulps) > 4) == values


@pytest.mark.parametrize(
    ("fault", "cache_path"), [("wrong_block", CachePath(chunks=LATE)), ("unmasked_pads", CachePath(chunks=LATE, pads_left=5))]
)
def test_a_fault_of_the_served_model_shows_in_its_distributions(
    engine: Engine, faulty: Any, fault: str, cache_path: CachePath
) -> None:
    sound, _ = of(engine, cache_path)
    faulty(fault)
    found, _ = of(engine, cache_path)
    assert found.kl.mean() > 20 * sound.kl.mean()
