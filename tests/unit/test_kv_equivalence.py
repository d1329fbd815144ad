"""Checks of ways through a KV cache, on comparisons that are built here: each kind of bug is told by its own name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_llminfer.checks.kv_diagnosis import Kind
from pytest_llminfer.checks.kv_equivalence import Compared, check_first_layer, check_routes
from pytest_llminfer.checks.kv_stored import check_cached_tensors, check_quantized_cache, format_error, normal_range
from pytest_llminfer.checks.receptive_field import check_reach
from pytest_llminfer.models.cut import CacheSizes
from pytest_llminfer.routes import CachedTensors, Route, RouteComparison, RouteComparisons
from pytest_llminfer.verdict import Outcome

LAYERS, HEADS, TOKENS, DIM = 3, 4, 48, 32
WINDOW = 20
NOISE = 4e-7
FULL = CacheSizes(HEADS, DIM, (0,) * LAYERS, learned_positions=False)
SLIDING = CacheSizes(HEADS, DIM, (WINDOW, 0, WINDOW), learned_positions=False)
DECODE = Route(chunks=(16,) + (1,) * (TOKENS - 16))


class Bug:
    """A comparison of one sequence that agrees, until something is written into it."""

    def __init__(self) -> None:
        self.keys, self.values = (np.full((LAYERS, HEADS, TOKENS), NOISE) for _ in range(2))
        self.kl = np.full(TOKENS, 1e-12)
        self.top1 = np.ones(TOKENS, bool)
        self.heads = np.broadcast_to(np.arange(HEADS)[:, None], (LAYERS, HEADS, TOKENS)).astype(np.int32)
        self.positions = np.broadcast_to(np.arange(TOKENS), (LAYERS, TOKENS)).astype(np.int32)
        self.lengths = (TOKENS,) * LAYERS
        self.dtype = "fp32"

    def from_layer(self, layer, start=0, end=TOKENS, size=1.0):
        """Keys and values off in this layer and all above it, as everything is that came of something wrong."""
        for errors in (self.keys, self.values):
            errors[layer:, :, start:end] = size
        self.kl[start:] = 0.1
        return self

    def one(self) -> RouteComparison:
        ulps = {
            f"{name}_ulps": np.where(errors[0] > 1e-5, 50.0, 0.0) for name, errors in (("key", self.keys), ("value", self.values))
        }
        return RouteComparison(
            kl=self.kl,
            top1=self.top1,
            key_error=self.keys,
            value_error=self.values,
            dtype=self.dtype,
            lengths=self.lengths,
            nearest_head=self.heads,
            nearest_position=self.positions,
            **ulps,
        )

    def compared(self, route=DECODE, cache=None, repeated=None) -> Compared:
        again = RouteComparisons((repeated.one(),), None) if repeated else None
        return Compared(route, RouteComparisons((self.one(),), cache), again)


def verdict(bug, route=DECODE, sizes=FULL, repeated=None):
    return check_routes(compared=[bug.compared(route, repeated=repeated)], sizes=sizes, claim="as prefill")


def assert_told(found, kind, *words):
    assert found.outcome is Outcome.FAIL
    assert found.key == kind
    assert found.details[0].startswith(f"{kind}: "), found
    for word in words:
        assert word in found.details[0], found


def test_what_agrees_passes_and_says_how_well():
    found = verdict(Bug())
    assert found.outcome is Outcome.PASS
    assert found.key == "KL 1e-12"
    assert "1e-08 nats" in found.threshold


def test_noise_up_to_the_limit_passes_in_every_layer_and_beyond_it_fails():
    bug = Bug()
    limits = 40 * 6e-8 * np.sqrt(np.arange(LAYERS) + 1)  # METHODS 3.4
    bug.keys[:] = bug.values[:] = (0.99 * limits)[:, None, None]
    assert verdict(bug).outcome is Outcome.PASS
    bug.values[2, 1, 7] = 1.01 * limits[2]
    assert verdict(bug).outcome is Outcome.FAIL


@pytest.mark.parametrize("harm", ["kl", "nan", "top1"])
def test_predictions_are_judged_by_themselves(harm):
    bug = Bug()
    if harm == "top1":
        bug.top1[5] = False
    else:
        bug.kl[5] = np.nan if harm == "nan" else 1.1e-8 * TOKENS
    assert verdict(bug).outcome is Outcome.FAIL


def test_one_wrong_sequence_of_several_fails():
    good, bad = Bug().compared(), Bug().from_layer(0, 20).compared()
    assert check_routes(compared=[good, bad, good], sizes=FULL, claim="c").outcome is Outcome.FAIL
    together = Compared(DECODE, RouteComparisons((Bug().one(), Bug().from_layer(0, 20).one()), None))
    assert "numbered 1" in str(check_routes(compared=[together], sizes=FULL, claim="c"))


def test_nothing_compared_is_no_pass():
    for check in (
        lambda **asked: check_routes(**asked, sizes=FULL),
        check_first_layer,
        lambda **asked: check_quantized_cache(**asked, sizes=FULL),
    ):
        found = check(compared=[], claim="c")
        assert found.outcome is Outcome.FAIL
        assert "nothing was compared" in found.details[0]
    assert check_cached_tensors(compared=[], sizes=FULL, dtype="fp32", claim="c").outcome is Outcome.FAIL
    assert check_reach(changes={}, position=1, reach=2, claim="c").outcome is Outcome.FAIL
    nothing = Bug()
    nothing.keys[:] = nothing.values[:] = np.nan
    one = replace(nothing.one(), key_ulps=np.full((HEADS, TOKENS), np.nan), value_ulps=np.full((HEADS, TOKENS), np.nan))
    found = check_first_layer(compared=[Compared(DECODE, RouteComparisons((one,), None))], claim="c")
    assert "nothing was compared" in found.details[0]


def test_another_dtype_than_fp32_is_no_fair_comparison():
    bug = Bug()
    bug.dtype = "bf16"
    assert verdict(bug).outcome is Outcome.INVALID


def test_keys_alone_in_layer_0_are_positions():
    bug = Bug().from_layer(1, 30)
    bug.keys[0, :, 30:] = 0.3
    assert_told(verdict(bug), Kind.POSITION, "tokens 30 to 47", "values are equal")


def test_one_token_repeated_tells_positions_from_tokens_where_they_are_learned():
    bug, again = Bug().from_layer(0, 30), Bug().from_layer(0, 30)
    bug.positions[0, 30::2] += 1
    bug.positions[0, -1] = TOKENS - 1
    again.positions[0, 30:-1] += 1
    assert_told(verdict(bug, repeated=again), Kind.POSITION, "+1 positions")
    assert_told(verdict(bug, repeated=Bug()), Kind.TOKEN, "tokens 30 to 47")


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["other", "lost"])
def test_a_wrong_block_is_told_with_its_tokens(layer, kind):
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[layer, :, 16:32] = 1.2
        errors[layer + 1 :, :, 33:] = 0.1
    bug.kl[32:] = 0.01
    if kind == "other":
        bug.positions[layer, 16:32] -= 16
    told = "tokens 16 to 31 hold keys and values of tokens 0 to 15" if kind == "other" else "tokens 16 to 31 alone are wrong"
    assert_told(verdict(bug), Kind.BLOCK, f"in layer {layer} first", told, "1 whole block of 16")


def test_a_block_that_held_pads_is_told_by_the_tokens_that_it_held():
    """Tokens 12 to 24 lie in columns 19 to 31, after 7 pads; columns 3 to 15 held tokens 3 to 11, and 4 pads."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 12:25] = 1.2
    bug.kl[12:] = 0.1
    bug.positions[1, 12:21] -= 9
    bug.positions[1, 21:25] = 11
    route = Route(chunks=(12, 17, 19), pads_right=7)
    assert_told(verdict(bug, route), Kind.BLOCK, "tokens 12 to 20 hold keys and values of tokens 3 to 11")


def test_a_block_among_pads_is_a_block_whatever_its_distance():
    """Tokens 16 to 25 lie in columns 22 to 31, after 6 pads, and got what columns 6 to 15 held."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 16:26] = 1.2
    bug.kl[26:] = 0.1
    bug.positions[1, 16:26] -= 10
    assert_told(verdict(bug, replace(DECODE, pads_right=6)), Kind.BLOCK, "tokens 16 to 25 hold keys and values of tokens 6 to 15")


def test_a_block_amid_a_pass_is_no_attention_bug():
    """Tokens 4 to 19 got what 12 pads held, in a pass that reaches from 5 to 31 and so predicts from them."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 4:20] = 1.2
    bug.kl[4:] = 0.1
    bug.positions[1, 4:16] = 0
    assert_told(verdict(bug, Route(chunks=(5, 27, 16), pads_left=12)), Kind.BLOCK, "tokens 4 to 19 alone are wrong")
    assert_told(verdict(bug, Route(chunks=(4, 16, 28), pads_left=12)), Kind.ATTENTION, "from token 4 on")


def test_slots_that_are_one_off_are_no_block():
    bug = Bug().from_layer(1, 25)
    for errors in (bug.keys, bug.values):
        errors[0, :, 25:-1] = 1.3
    bug.positions[0, 25:-1] += 1
    assert_told(verdict(bug), Kind.SLOT, "tokens 25 to 46 hold keys and values of tokens 26 to 47")


def test_slots_that_are_off_to_the_end_are_no_block():
    bug = Bug().from_layer(0, 25)
    bug.positions[0, 25:] -= 3
    assert_told(verdict(bug), Kind.SLOT, "tokens 25 to 47 hold keys and values of tokens 22 to 44")


def test_swapped_heads_are_told_with_their_numbers():
    bug = Bug().from_layer(1, 16)
    bug.keys[0, [1, 3], 16:] = 1.4
    bug.heads[0, 1, 16:], bug.heads[0, 3, 16:] = 3, 1
    assert_told(verdict(bug), Kind.HEADS, "1 as 3, 3 as 1")
    bug.heads[:] = np.arange(HEADS)[:, None]
    assert_told(verdict(bug), Kind.HEADS, "heads 1, 3 differ, of the others none")


def test_all_heads_rotated_are_swapped_heads_too():
    bug = Bug().from_layer(1, 16)
    bug.keys[0, :, 16:] = bug.values[0, :, 16:] = 1.4
    bug.heads[0, :, 16:] = np.roll(np.arange(HEADS), 1)[:, None]
    assert_told(verdict(bug), Kind.HEADS, "0 as 3")


def test_keys_of_another_token_are_near_to_any_head_and_no_swap():
    bug = Bug().from_layer(1, 16)
    bug.keys[0, :, 16:] = bug.values[0, :, 16:] = 1.4
    bug.heads[0, :, 16:] = np.random.default_rng(0).integers(0, HEADS, (HEADS, TOKENS - 16))
    assert_told(verdict(bug), Kind.TOKEN)


def test_values_alone_are_a_projection():
    bug = Bug().from_layer(1, 16)
    bug.values[0, :, 16:] = 0.7
    assert_told(verdict(bug), Kind.TOKEN, "keys are equal")


def test_a_window_one_too_long_is_told():
    bug = Bug().from_layer(1, WINDOW, size=0.01)
    for errors in (bug.keys, bug.values):
        errors[0, :, : TOKENS - WINDOW] = np.nan
    bug.lengths = (WINDOW, TOKENS, WINDOW)
    assert_told(verdict(bug, sizes=SLIDING), Kind.WINDOW, "past the window of 20, of which the cache keeps 20")
    assert_told(verdict(bug, sizes=FULL), Kind.ATTENTION, "from token 20 on")


def test_the_last_layers_window_shows_in_predictions_alone():
    bug = Bug()
    bug.kl[WINDOW:] = 0.01
    assert_told(verdict(bug, sizes=SLIDING), Kind.WINDOW, "equal in every layer")


@pytest.mark.parametrize(
    ("route", "first"), [(Route(pads_left=3), 0), (Route(pads_left=3), 1), (Route(chunks=(16, 32), pads_right=2), 16)]
)
def test_pads_that_are_seen_are_told(route, first):
    assert_told(verdict(Bug().from_layer(1, first, size=0.2), route), Kind.PADDING, f"from token {first} on")
    assert_told(verdict(Bug().from_layer(1, first, size=0.2)), Kind.ATTENTION)


def test_pads_that_even_out_a_batch_count_for_the_shorter_row_alone():
    short, long = Bug().from_layer(1, 1, size=0.2).one(), replace(Bug().one(), kl=np.full(TOKENS + 6, 1e-12))
    entry = Compared(Route(batch=2), RouteComparisons((short, long), None))
    assert (entry.pads_before(0), entry.pads_before(1)) == (6, 0)
    assert_told(check_routes(compared=[entry], sizes=FULL, claim="c"), Kind.PADDING, "6 before it")
    right = Compared(Route(batch=2, pads_right=1), RouteComparisons((short, long), None))
    assert right.pads_before(0) == 0


@pytest.mark.parametrize("layer", [0, 1])
def test_a_stale_prefix_is_told_by_its_sound_predictions(layer):
    bug = Bug().from_layer(layer, 30)
    if layer == 0:
        bug.keys[0, :, 31:] = bug.values[0, :, 31:] = NOISE
    bug.kl[:32] = 1e-12
    route = replace(DECODE, prefix=32)
    assert_told(verdict(bug, route), Kind.PREFIX, "from token 30 on, within the reused prefix of 32")
    bug.kl[30:] = 0.1
    assert verdict(bug, route).key != Kind.PREFIX


def test_even_rounding_is_a_scale():
    bug = Bug().from_layer(0, 16, size=0.026)
    assert_told(verdict(bug), Kind.SCALE, "tokens 16 to 47 are off by 0.026 of their size")
    bug.keys[0, :, 20] = bug.values[0, :, 20] = 1.2
    assert_told(verdict(bug), Kind.TOKEN)


def test_the_first_layer_passes_up_to_one_ulp():
    one = replace(Bug().one(), dtype="bf16", key_ulps=np.full((HEADS, TOKENS), 1.0))
    found = check_first_layer(compared=[Compared(DECODE, RouteComparisons((one,), None))], claim="c")
    assert found.outcome is Outcome.PASS
    assert "1 ulp of bf16" in found.threshold


@pytest.mark.parametrize(("part", "kind"), [("keys", Kind.POSITION), ("both", Kind.TOKEN)])
def test_the_first_layer_tells_positions_from_tokens(part, kind):
    bug = Bug()
    bug.dtype = "bf16"
    bug.keys[0, :, 20:] = 0.9
    if part == "both":
        bug.values[0, :, 20:] = 0.9
    assert_told(check_first_layer(compared=[bug.compared()], claim="c"), kind, "tokens 20 to 47")


def test_noise_of_later_layers_says_nothing_about_the_first():
    bug = Bug().from_layer(1, 0, size=0.02)
    bug.top1[3] = False
    assert check_first_layer(compared=[bug.compared()], claim="c").outcome is Outcome.PASS


def test_the_range_of_normal_numbers_is_that_of_the_tables():
    # Tippett 1925, table of the mean range: 2, 10 and 100 numbers.
    assert normal_range(2) == pytest.approx(1.12838, abs=1e-4)
    assert normal_range(10) == pytest.approx(3.07751, abs=1e-4)
    assert normal_range(100) == pytest.approx(5.01519, abs=1e-4)


def test_rounding_to_three_bits_errs_as_much_as_is_said():
    numbers = 2.0 ** np.random.default_rng(1).uniform(0, 1, 200_000)
    rounded = np.round(numbers * 8) / 8
    measured = np.sqrt(((rounded - numbers) ** 2).mean() / (numbers**2).mean())
    assert format_error("fp8", FULL) == pytest.approx(measured, rel=0.01)


def test_rounding_to_the_steps_of_a_group_errs_as_much_as_is_said():
    values = np.random.default_rng(2).standard_normal((4000, 64))
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    step = (high - low) / 15
    error = np.sqrt(((np.round((values - low) / step) * step + low - values) ** 2).mean())
    assert format_error("int4", FULL) == pytest.approx(error, rel=0.05)


def quantized(dtype, ratio, **cache):
    bug = Bug()
    bug.dtype = dtype
    size = ratio * format_error(dtype, FULL)
    bug.keys[0] = bug.values[0] = size
    bug.kl[16:] = 0.05
    shape = (1, HEADS, TOKENS, DIM)
    fields = {"dtypes": (dtype,) * LAYERS, "stored_bytes": (0,) * LAYERS, "sliding": (0,) * LAYERS, **cache}
    tensors = CachedTensors(key_shapes=(shape,) * LAYERS, value_shapes=(shape,) * LAYERS, **fields)
    return bug, bug.compared(DECODE, tensors)


@pytest.mark.parametrize("dtype", ["fp8", "int4", "int2"])
@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [(0.01, Outcome.FAIL), (0.45, Outcome.FAIL), (0.55, Outcome.PASS), (1.4, Outcome.PASS), (1.6, Outcome.FAIL)],
)
def test_a_quantized_cache_errs_neither_too_much_nor_too_little(dtype, ratio, outcome):
    _, entry = quantized(dtype, ratio)
    found = check_quantized_cache(compared=[entry], sizes=FULL, claim="c")
    assert found.outcome is outcome
    if ratio < 0.5:
        assert "was not quantized" in found.details[0]
    if outcome is Outcome.FAIL:
        assert found.key == Kind.SCALE


def test_a_scale_that_was_not_measured_is_told():
    measured = {"largest": ((4.0, 3.0),) * LAYERS, "scales": ((4.0 / 448, 3.0 / 448),) * LAYERS}
    assert check_quantized_cache(compared=[quantized("fp8", 1, **measured)[1]], sizes=FULL, claim="c").outcome is Outcome.PASS
    measured["scales"] = ((4.0 / 448, 3.0 / 448), (1.0, 1.0), (4.0 / 448, 3.0 / 448))
    found = check_quantized_cache(compared=[quantized("fp8", 1, **measured)[1]], sizes=FULL, claim="c")
    assert found.key == Kind.SCALE
    assert found.details[0].startswith("cache scale: in layer 1, keys up to 4 have the scale 1,")


def test_a_quantized_cache_with_swapped_heads_is_not_taken_for_its_scales():
    bug, _ = quantized("int4", 1)
    bug.keys[0, :2, 16:] = 1.4
    bug.heads[0, 0, 16:], bug.heads[0, 1, 16:] = 1, 0
    entry = bug.compared(DECODE, quantized("int4", 1)[1].found.cache)
    found = check_quantized_cache(compared=[entry], sizes=FULL, claim="c")
    assert found.key == Kind.HEADS


def test_the_pass_that_sees_no_quantized_tokens_must_be_exact():
    bug, entry = quantized("fp8", 1)
    bug.kl[3] = 1e-6
    found = check_quantized_cache(compared=[bug.compared(DECODE, entry.found.cache)], sizes=FULL, claim="c")
    assert found.outcome is Outcome.FAIL
    assert "sees no quantized tokens" in found.details[0]


def tensors(*, sizes=FULL, rows=1, lengths=(TOKENS,) * LAYERS, dtype="fp32", item=4, heads=HEADS, **changed):
    shapes = tuple((rows, heads, length, DIM) for length in lengths)
    stored = tuple(2 * rows * heads * length * DIM * item for length in lengths)
    cache = CachedTensors(shapes, shapes, (dtype,) * LAYERS, stored, sizes.windows)
    return replace(cache, **changed)


def sized(cache, route=DECODE, sizes=FULL):
    return check_cached_tensors(compared=[Bug().compared(route, cache)], sizes=sizes, dtype="fp32", claim="c")


def test_a_cache_has_exactly_its_shape_and_bytes():
    assert sized(tensors()).outcome is Outcome.PASS
    assert sized(tensors(rows=6), Route(batch=2, beams=3)).outcome is Outcome.PASS
    assert sized(tensors(lengths=(TOKENS + 5,) * LAYERS), Route(pads_left=2, pads_right=3)).outcome is Outcome.PASS
    assert sized(tensors(lengths=(TOKENS + 7,) * LAYERS), Route(cache="static", spare=7)).outcome is Outcome.PASS
    for wrong in (
        tensors(heads=2 * HEADS),
        tensors(lengths=(TOKENS, TOKENS - 1, TOKENS)),
        tensors(dtype="bf16"),
        tensors(item=2),
        tensors(stored_bytes=(tensors().stored_bytes[0] + 1, *tensors().stored_bytes[1:])),
        replace(tensors(), key_shapes=tensors().key_shapes[:2]),
    ):
        assert sized(wrong).outcome is Outcome.FAIL


def test_a_window_keeps_one_token_less_than_itself_and_all_of_it_where_it_is_static():
    assert sized(tensors(lengths=(WINDOW - 1, TOKENS, WINDOW - 1)), sizes=SLIDING).outcome is Outcome.PASS
    static = Route(cache="static", spare=4)
    assert sized(tensors(lengths=(WINDOW, TOKENS + 4, WINDOW)), static, SLIDING).outcome is Outcome.PASS
    found = sized(tensors(lengths=(WINDOW, TOKENS, WINDOW)), sizes=SLIDING)
    assert found.outcome is Outcome.FAIL
    assert found.key == Kind.WINDOW


def test_a_quantized_cache_has_the_bytes_of_its_codes_and_scales():
    heads, residual = HEADS, 5
    packed = heads * (TOKENS - residual) * DIM
    stored = 2 * (packed // 2 + 2 * 4 * packed // 64 + heads * residual * DIM * 4)
    route = Route(cache="quantized", residual=8, chunks=DECODE.chunks)
    int4 = tensors(dtype="int4", stored_bytes=(stored,) * LAYERS, residual=(residual,) * LAYERS)
    assert sized(int4, route).outcome is Outcome.PASS
    assert sized(replace(int4, residual=(0,) * LAYERS), route).outcome is Outcome.FAIL
    fp8 = tensors(dtype="fp8", stored_bytes=(2 * (heads * TOKENS * DIM + 4),) * LAYERS)
    assert sized(fp8, Route(cache="fp8")).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("first", "last", "outcome"), [(5, 43, Outcome.PASS), (5, 44, Outcome.FAIL), (5, 42, Outcome.FAIL), (4, 43, Outcome.FAIL)]
)
def test_a_token_reaches_exactly_as_far_as_its_windows(first, last, outcome):
    changed = np.zeros(60)
    changed[first : last + 1] = 1e-3
    sound = np.zeros(60)
    sound[5:44] = 1e-3
    found = check_reach(changes={"prefill": sound, "decode": changed}, position=5, reach=38, claim="c")
    assert found.outcome is outcome


def test_changes_nowhere_are_no_proof():
    assert check_reach(changes={"decode": np.zeros(60)}, position=5, reach=38, claim="c").outcome is Outcome.FAIL
