"""A configuration cut to what its KV cache depends on."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.families.kv_equivalence.check import repeated
from pytest_llminfer.families.kv_equivalence.drawing import LENGTHS, STRATEGIES, Subject, draw_cases, shorten
from pytest_llminfer.families.kv_equivalence.observe import FAMILIES, SLIDING_SHAPES, benign_cache_paths
from pytest_llminfer.models.cut import GEMMA, STRUCTURES, WINDOW, CacheSizes, structure_config
from pytest_llminfer.models.model import Model
from pytest_llminfer.worker.protocol.cache_paths import CACHES

S, F = "sliding_attention", "full_attention"
KEPT = (
    *(
        "num_attention_heads",
        "num_key_value_heads",
        "n_head",
        "n_embd",
        "n_positions",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
    ),
    *("attention_bias", "hidden_act", "hidden_activation", "activation_function", "layer_norm_epsilon", "query_pre_attn_scalar"),
    *("model_type", "max_position_embeddings", "mlp_bias", "rope_local_base_freq"),
)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_what_a_cache_depends_on_stays(name: str, layers: int) -> None:
    whole, cut = STRUCTURES[name], structure_config(STRUCTURES[name], layers=layers)
    assert {key: cut[key] for key in KEPT if key in cut} == {key: whole[key] for key in KEPT if key in whole}
    before, after = CacheSizes.from_config(whole), CacheSizes.from_config(cut)
    assert (after.kv_heads, after.head_dim) == (before.kv_heads, before.head_dim)
    assert len(after.windows) == layers
    assert {bool(window) for window in after.windows} == {bool(window) for window in before.windows}
    assert cut["vocab_size"] <= 1024
    assert cut.get("hidden_size", 0) <= 256
    assert "eos_token_id" not in cut


def test_the_four_shapes_are_what_they_are_named_for() -> None:
    sizes = {name: CacheSizes.from_config(config) for name, config in STRUCTURES.items()}
    assert [(entry.kv_heads, entry.head_dim) for entry in sizes.values()] == [(12, 64), (8, 128), (4, 128), (4, 256)]
    assert sizes["gemma-3-4b"].windows == tuple(0 if (layer + 1) % 6 == 0 else 1024 for layer in range(34))
    assert SLIDING_SHAPES == ("gemma-3-4b",)


def test_sequences_that_are_drawn_exceed_the_window() -> None:
    assert CacheSizes.from_config(structure_config(GEMMA)).windows == (WINDOW, 0)
    assert LENGTHS[0] > WINDOW + 2
    assert structure_config({**GEMMA, "sliding_window": 8})["sliding_window"] == 8


@pytest.mark.parametrize(
    ("config", "layers", "windows"),
    [
        ({"sliding_window": 4096}, 3, (WINDOW,) * 3),
        ({"sliding_window": 4096, "use_sliding_window": False}, 2, (0, 0)),
        ({"sliding_window": None}, 2, (0, 0)),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 6}, 2, (0, WINDOW)),
        ({"model_type": "gemma2", "sliding_window": 4096}, 4, (WINDOW, 0, WINDOW, 0)),
        ({"sliding_window": 4096, "layer_types": [F, S, S, S, F, S, S, S]}, 3, (0, WINDOW, 0)),
        ({"sliding_window": 4096, "sliding_window_pattern": 4}, 2, (WINDOW, 0)),
    ],
)
def test_layers_with_a_window_keep_their_order_one_of_each_run(
    config: dict[str, Any], layers: int, windows: tuple[int, ...]
) -> None:
    whole = {"model_type": "other", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 99, **config}
    assert CacheSizes.from_config(structure_config(whole, layers=layers)).windows == windows


def test_a_hidden_size_that_gives_the_head_size_stays() -> None:
    whole = {"model_type": "other", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 8, "vocab_size": 99}
    assert structure_config(whole)["hidden_size"] == 2048
    assert structure_config({**whole, "head_dim": 64})["hidden_size"] < 2048
    cut = structure_config({**whole, "model_type": "llama"})
    assert (cut["head_dim"], cut["hidden_size"]) == (128, 128)
    for heads in (6, 24, 28, 40, 160):
        cut = structure_config({**whole, "model_type": "llama", "hidden_size": 128 * heads, "num_attention_heads": heads})
        assert cut["hidden_size"] % heads == 0
        assert cut["head_dim"] == 128


def test_of_text_and_images_the_text_is_cut() -> None:
    cut = structure_config({"model_type": "gemma3", "vision_config": {"hidden_size": 9}, "text_config": GEMMA})
    assert cut == structure_config(GEMMA)


def test_the_served_model_is_cut_and_given_as_it_was() -> None:
    config = Model("reference").config
    before = dict(config)
    cut = structure_config(config)
    assert config == before
    assert (cut["num_hidden_layers"], cut["head_dim"], cut["num_key_value_heads"]) == (2, 64, 2)


def test_what_is_no_cache_of_heads_is_not_measured() -> None:
    linear = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "layer_types": ["linear_attention", F]}
    with pytest.raises(UnsupportedError, match="linear_attention"):
        CacheSizes.from_config(linear)
    with pytest.raises(UnsupportedError, match="latent"):
        CacheSizes.from_config({"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "kv_lora_rank": 512})
    with pytest.raises(BadInputError, match="num_attention_heads"):
        structure_config({"model_type": "t5", "num_layers": 2})


def test_every_family_has_a_strategy() -> None:
    assert tuple(STRATEGIES) == FAMILIES


@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize("family", FAMILIES)
def test_ways_are_drawn_as_they_are_asked_for(family: str, window: int) -> None:
    if family == "sliding" and not window:
        return
    strategy = STRATEGIES[family](Subject(vocabulary=50, window=window))
    drawn = draw_cases(strategy, 10)
    assert drawn == draw_cases(strategy, 10)
    assert drawn != draw_cases(strategy, 10, number=1)
    assert len(set(drawn)) == 10
    assert len({case.cache_path for case in drawn}) > 3
    for case in drawn:
        cache_path, lengths = case.cache_path, [len(ids) for ids in case.sequences]
        assert all(0 <= token < 50 for ids in case.sequences for token in ids)
        assert cache_path.cache in CACHES
        assert not cache_path.chunks or {sum(cache_path.chunks)} == set(lengths)
        assert all(chunk > 0 for chunk in cache_path.chunks)
        assert min(lengths) > WINDOW
        assert cache_path.prefix < lengths[0]
        assert cache_path.crop < lengths[0]
        sequences, longer = repeated(case.sequences, cache_path)
        assert [len(set(ids)) for ids in sequences] == [1] * len(lengths)
        assert not longer.chunks or {sum(longer.chunks)} == {len(ids) for ids in sequences}


def test_a_way_that_fails_is_made_shorter() -> None:
    strategy = STRATEGIES["chunked"](Subject(vocabulary=50))
    failing = max(draw_cases(strategy, 20), key=lambda case: len(case.cache_path.chunks))
    found = shorten(strategy, failing, lambda case: len(case.cache_path.chunks) >= 3)
    assert len(found.cache_path.chunks) == 3
    assert sum(found.cache_path.chunks) == LENGTHS[0]
    assert shorten(strategy, failing, lambda _: False) == failing


def test_benign_cache_paths_fit_every_prompt() -> None:
    for length in range(24, 70):
        assert all(
            sum(cache_path.chunks) in (0, length) and cache_path.crop <= length and cache_path.prefix < length
            for cache_path in benign_cache_paths(length)
        )
