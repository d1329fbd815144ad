"""Whichever way tokens go through a KV cache, they leave the keys, values and predictions that one pass leaves.

In fp32, on the served model's own configuration and on four others, each cut to two layers with random weights; the first layer
also of the served model, in its own dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.kv_equivalence.observe import FAMILIES, OWN, SLIDING_SHAPES, STRUCTURES

if TYPE_CHECKING:
    from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence

pytestmark = [pytest.mark.llminfer_only(quantization="none"), pytest.mark.llminfer_needs("compare_cache_paths")]
has_window = pytest.mark.llminfer_only(has_sliding_window=True)
CASES = [
    pytest.param(shape, family, id=f"{shape}-{family}", marks=has_window if (shape, family) == (OWN, "sliding") else ())
    for shape in (OWN, *STRUCTURES)
    for family in FAMILIES
    if shape in (OWN, *SLIDING_SHAPES) or family != "sliding"
]


@pytest.mark.parametrize(("shape", "family"), CASES)
def test_every_way_through_the_cache_gives_what_prefill_gives(kv_equivalence: KVEquivalence, shape: str, family: str) -> None:
    """Mean KL of at most 1e-8, the same likeliest tokens, keys and values within rounding; the cache of the exact size."""
    kv_equivalence.structure(shape, families=(family,))


@pytest.mark.llminfer_needs("run")
@pytest.mark.parametrize("shape", [pytest.param(OWN, marks=has_window), *SLIDING_SHAPES])
def test_a_token_changes_what_its_windows_reach_and_nothing_beyond(kv_equivalence: KVEquivalence, shape: str) -> None:
    """Layers x (window - 1) tokens on, to the bit."""
    kv_equivalence.window(shape)


def test_the_first_layer_is_equal_to_the_last_place(kv_equivalence: KVEquivalence) -> None:
    """Keys and values of the served model, in the dtype in which they are stored, by every cache path that quantizes nothing."""
    kv_equivalence.first_layer()
