"""Bugs of a KV cache, written into comparisons: each kind is told by its own name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_llminfer.families.kv_equivalence.check import Compared, check_cache_paths
from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.observations.cache_paths import CachePathComparisons
from pytest_llminfer.worker.protocol.cache_paths import CachePath
from tests.support.kv_comparisons import DECODE, FULL, HEADS, NOISE, SLIDING, TOKENS, WINDOW, Bug, assert_told, verdict


def test_keys_alone_in_layer_0_are_positions() -> None:
    bug = Bug().from_layer(1, 30)
    bug.keys[0, :, 30:] = 0.3
    assert_told(verdict(bug), Kind.POSITION, "tokens 30 to 47", "values are equal")


def test_one_token_repeated_tells_positions_from_tokens_where_they_are_learned() -> None:
    bug, again = Bug().from_layer(0, 30), Bug().from_layer(0, 30)
    bug.positions[0, 30::2] += 1
    bug.positions[0, -1] = TOKENS - 1
    again.positions[0, 30:-1] += 1
    assert_told(verdict(bug, repeated=again), Kind.POSITION, "+1 positions")
    assert_told(verdict(bug, repeated=Bug()), Kind.TOKEN, "tokens 30 to 47")


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["other", "lost"])
def test_a_wrong_block_is_told_with_its_tokens(layer: int, kind: str) -> None:
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[layer, :, 16:32] = 1.2
        errors[layer + 1 :, :, 33:] = 0.1
    bug.kl[32:] = 0.01
    if kind == "other":
        bug.positions[layer, 16:32] -= 16
    told = "tokens 16 to 31 hold keys and values of tokens 0 to 15" if kind == "other" else "tokens 16 to 31 alone are wrong"
    assert_told(verdict(bug), Kind.BLOCK, f"in layer {layer} first", told, "1 whole block of 16")


def test_a_block_that_held_pads_is_told_by_the_tokens_that_it_held() -> None:
    """Tokens 12 to 24 lie in columns 19 to 31, after 7 pads; columns 3 to 15 held tokens 3 to 11, and 4 pads."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 12:25] = 1.2
    bug.kl[12:] = 0.1
    bug.positions[1, 12:21] -= 9
    bug.positions[1, 21:25] = 11
    cache_path = CachePath(chunks=(12, 17, 19), pads_right=7)
    assert_told(verdict(bug, cache_path), Kind.BLOCK, "tokens 12 to 20 hold keys and values of tokens 3 to 11")


def test_a_block_among_pads_is_a_block_whatever_its_distance() -> None:
    """Tokens 16 to 25 lie in columns 22 to 31, after 6 pads, and got what columns 6 to 15 held."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 16:26] = 1.2
    bug.kl[26:] = 0.1
    bug.positions[1, 16:26] -= 10
    assert_told(verdict(bug, replace(DECODE, pads_right=6)), Kind.BLOCK, "tokens 16 to 25 hold keys and values of tokens 6 to 15")


def test_a_block_amid_a_pass_is_no_attention_bug() -> None:
    """Tokens 4 to 19 got what 12 pads held, in a pass that reaches from 5 to 31 and so predicts from them."""
    bug = Bug()
    for errors in (bug.keys, bug.values):
        errors[1, :, 4:20] = 1.2
    bug.kl[4:] = 0.1
    bug.positions[1, 4:16] = 0
    assert_told(verdict(bug, CachePath(chunks=(5, 27, 16), pads_left=12)), Kind.BLOCK, "tokens 4 to 19 alone are wrong")
    assert_told(verdict(bug, CachePath(chunks=(4, 16, 28), pads_left=12)), Kind.ATTENTION, "from token 4 on")


def test_slots_that_are_one_off_are_no_block() -> None:
    bug = Bug().from_layer(1, 25)
    for errors in (bug.keys, bug.values):
        errors[0, :, 25:-1] = 1.3
    bug.positions[0, 25:-1] += 1
    assert_told(verdict(bug), Kind.SLOT, "tokens 25 to 46 hold keys and values of tokens 26 to 47")


def test_slots_that_are_off_to_the_end_are_no_block() -> None:
    bug = Bug().from_layer(0, 25)
    bug.positions[0, 25:] -= 3
    assert_told(verdict(bug), Kind.SLOT, "tokens 25 to 47 hold keys and values of tokens 22 to 44")


def test_swapped_heads_are_told_with_their_numbers() -> None:
    bug = Bug().from_layer(1, 16)
    bug.keys[0, [1, 3], 16:] = 1.4
    bug.heads[0, 1, 16:], bug.heads[0, 3, 16:] = 3, 1
    assert_told(verdict(bug), Kind.HEADS, "1 as 3, 3 as 1")
    bug.heads[:] = np.arange(HEADS)[:, None]
    assert_told(verdict(bug), Kind.HEADS, "heads 1, 3 differ, of the others none")


def test_all_heads_rotated_are_swapped_heads_too() -> None:
    bug = Bug().from_layer(1, 16)
    bug.keys[0, :, 16:] = bug.values[0, :, 16:] = 1.4
    bug.heads[0, :, 16:] = np.roll(np.arange(HEADS), 1)[:, None]
    assert_told(verdict(bug), Kind.HEADS, "0 as 3")


def test_keys_of_another_token_are_near_to_any_head_and_no_swap() -> None:
    bug = Bug().from_layer(1, 16)
    bug.keys[0, :, 16:] = bug.values[0, :, 16:] = 1.4
    bug.heads[0, :, 16:] = np.random.default_rng(0).integers(0, HEADS, (HEADS, TOKENS - 16))
    assert_told(verdict(bug), Kind.TOKEN)


def test_values_alone_are_a_projection() -> None:
    bug = Bug().from_layer(1, 16)
    bug.values[0, :, 16:] = 0.7
    assert_told(verdict(bug), Kind.TOKEN, "keys are equal")


def test_a_window_one_too_long_is_named() -> None:
    bug = Bug().from_layer(1, WINDOW, size=0.01)
    for errors in (bug.keys, bug.values):
        errors[0, :, : TOKENS - WINDOW] = np.nan
    bug.lengths = (WINDOW, TOKENS, WINDOW)
    assert_told(verdict(bug, sizes=SLIDING), Kind.WINDOW, "past the window of 20, of which the cache keeps 20")
    assert_told(verdict(bug, sizes=FULL), Kind.ATTENTION, "from token 20 on")


def test_the_last_layers_window_shows_in_predictions_alone() -> None:
    bug = Bug()
    bug.kl[WINDOW:] = 0.01
    assert_told(verdict(bug, sizes=SLIDING), Kind.WINDOW, "equal in every layer")


@pytest.mark.parametrize(
    ("cache_path", "first"),
    [(CachePath(pads_left=3), 0), (CachePath(pads_left=3), 1), (CachePath(chunks=(16, 32), pads_right=2), 16)],
)
def test_attended_pads_are_named(cache_path: CachePath, first: int) -> None:
    assert_told(verdict(Bug().from_layer(1, first, size=0.2), cache_path), Kind.PADDING, f"from token {first} on")
    assert_told(verdict(Bug().from_layer(1, first, size=0.2)), Kind.ATTENTION)


def test_pads_that_even_out_a_batch_count_for_the_shorter_row_alone() -> None:
    short, long = Bug().from_layer(1, 1, size=0.2).one(), replace(Bug().one(), kl=np.full(TOKENS + 6, 1e-12))
    entry = Compared(CachePath(batch=2), CachePathComparisons((short, long), None))
    assert (entry.pads_before(0), entry.pads_before(1)) == (6, 0)
    assert_told(check_cache_paths(compared=[entry], sizes=FULL, claim="c"), Kind.PADDING, "6 before it")
    right = Compared(CachePath(batch=2, pads_right=1), CachePathComparisons((short, long), None))
    assert right.pads_before(0) == 0


@pytest.mark.parametrize("layer", [0, 1])
def test_a_stale_prefix_is_told_by_its_sound_predictions(layer: int) -> None:
    bug = Bug().from_layer(layer, 30)
    if layer == 0:
        bug.keys[0, :, 31:] = bug.values[0, :, 31:] = NOISE
    bug.kl[:32] = 1e-12
    cache_path = replace(DECODE, prefix=32)
    assert_told(verdict(bug, cache_path), Kind.PREFIX, "from token 30 on, within the reused prefix of 32")
    bug.kl[30:] = 0.1
    assert verdict(bug, cache_path).key != Kind.PREFIX


def test_even_rounding_is_a_scale() -> None:
    bug = Bug().from_layer(0, 16, size=0.026)
    assert_told(verdict(bug), Kind.SCALE, "tokens 16 to 47 are off by 0.026 of their size")
    bug.keys[0, :, 20] = bug.values[0, :, 20] = 1.2
    assert_told(verdict(bug), Kind.TOKEN)
