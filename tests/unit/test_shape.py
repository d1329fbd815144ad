from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_llminfer
from pytest_llminfer.errors import BadInputError, InvalidSpecError, UnsupportedError
from pytest_llminfer.models.shape import ROLES, ModelShape, item_bytes, torch_dtype

SHAPES = Path(pytest_llminfer.__file__).parent / "models" / "shapes"
PUBLISHED = {
    "llama-3-8b": (8_030_261_248, 131_072),
    "llama-3.1-8b": (8_030_261_248, 131_072),
    "qwen2.5-7b": (7_615_616_512, 57_344),
    "qwen2.5-0.5b": (494_032_768, 12_288),
    "mistral-7b": (7_241_732_096, 131_072),
    "gpt2": (124_439_808, 36_864),
    "qwen2.5-72b": (72_706_203_648, 327_680),
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


VARIANTS = {
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama, wide heads, tied": LLAMA | {"head_dim": 32, "tie_word_embeddings": True},
    "llama without grouped heads": LLAMA | {"num_key_value_heads": None},
    "qwen2, tied": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "head_dim": None},
    "gpt2, its sizes alone": GPT2,
}
IN_TRANSFORMERS = """
import json, sys, torch, transformers
weights = {}
for name, config in json.load(sys.stdin).items():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    weights[name] = {key: list(weight.shape) for key, weight in model.named_parameters()}
json.dump(weights, sys.stdout)
"""


def config(name: str) -> Any:
    return json.loads((SHAPES / name / "config.json").read_text())


@pytest.fixture(scope="module")
def in_transformers() -> dict[Any, Any]:
    """Names and shapes of the weights that transformers builds, in a process of its own: this one never imports a framework."""
    configs = VARIANTS | {name: config(name) for name in PUBLISHED}
    done = subprocess.run(
        [sys.executable, "-c", IN_TRANSFORMERS], input=json.dumps(configs), capture_output=True, text=True, check=False
    )
    if "No module named" in done.stderr:
        pytest.skip("transformers is not installed")
    assert done.returncode == 0, done.stderr
    return {name: {key: tuple(shape) for key, shape in weights.items()} for name, weights in json.loads(done.stdout).items()}


def test_every_bundled_shape_has_a_published_size() -> None:
    assert {path.name for path in SHAPES.iterdir()} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_cache_bytes_are_the_published_ones(name: str) -> None:
    shape = ModelShape.from_config(config(name))
    assert (shape.parameter_count, shape.kv_bytes_per_token("bf16")) == PUBLISHED[name]


@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_the_weights_are_those_that_transformers_builds(in_transformers: Any, name: str) -> None:
    shape = ModelShape.from_config(VARIANTS[name] if name in VARIANTS else config(name))
    assert {weight.name: weight.shape for weight in shape.parameters()} == in_transformers[name]


def test_gpt2_has_its_published_size() -> None:
    assert ModelShape.from_config(GPT2).parameter_count == 124_439_808


def test_gpt2_with_its_own_inner_size_and_no_tie() -> None:
    shape = ModelShape.from_config(GPT2 | {"n_inner": 100, "tie_word_embeddings": False})
    names = {weight.name: weight.shape for weight in shape.parameters()}
    assert names["transformer.h.0.mlp.c_fc.weight"] == (768, 100)
    assert names["lm_head.weight"] == (50257, 768)
    assert shape.tied_pairs == ()


def test_every_role_is_used_and_known() -> None:
    shapes = [ModelShape.from_config(config("qwen2.5-7b")), ModelShape.from_config(GPT2)]
    roles = {weight.role for shape in shapes for weight in shape.parameters()}
    assert roles == set(ROLES)


def test_names_are_unique() -> None:
    for name in PUBLISHED:
        names = [weight.name for weight in ModelShape.from_config(config(name)).parameters()]
        assert len(names) == len(set(names))


def test_a_tied_output_matrix_is_listed_as_a_pair_not_as_a_weight() -> None:
    shape = ModelShape.from_config(config("qwen2.5-0.5b"))
    assert shape.tied_pairs == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert "lm_head.weight" not in {weight.name for weight in shape.parameters()}
    assert ModelShape.from_config(GPT2).tied_pairs == (("lm_head.weight", "transformer.wte.weight"),)


@given(
    layers=st.integers(1, 4), heads=st.integers(1, 4), groups=st.integers(1, 3), head_dim=st.integers(1, 9),
    intermediate=st.integers(1, 40), vocab=st.integers(1, 50), tied=st.booleans(),
)  # fmt: skip
def test_the_count_is_the_closed_formula(
    layers: int, heads: int, groups: Any, head_dim: Any, intermediate: int, vocab: int, tied: bool
) -> None:
    hidden, queries, keys = 24, heads * groups * head_dim, heads * head_dim
    shape = ModelShape.from_config(
        {
            "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads * groups,
            "num_key_value_heads": heads, "head_dim": head_dim, "intermediate_size": intermediate, "vocab_size": vocab,
            "tie_word_embeddings": tied,
        }
    )  # fmt: skip
    linears = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * intermediate
    assert shape.parameter_count == layers * linears + (2 * layers + 1) * hidden + vocab * hidden * (1 if tied else 2)
    assert shape.kv_bytes_per_token("fp32") == 2 * shape.kv_bytes_per_token("fp16") == 8 * layers * keys


@pytest.mark.parametrize("model_type", ["mamba2", "", None])
def test_an_unknown_architecture_is_a_visible_skip(model_type: str | None) -> None:
    with pytest.raises(UnsupportedError, match="give a model of one of: llama, mistral, qwen2, gpt2"):
        ModelShape.from_config({"model_type": model_type} if model_type is not None else {})


@pytest.mark.parametrize("value", [None, 0, -1, "64", 1.5, True])
def test_a_missing_size_is_named(value: str | float | bool | None) -> None:
    with pytest.raises(BadInputError, match="llama model needs hidden_size as a positive whole number"):
        ModelShape.from_config(LLAMA | {"hidden_size": value})


@pytest.mark.parametrize(("word", "name", "size"), [("bf16", "bfloat16", 2), ("torch.float32", "float32", 4), ("int8", "int8", 1)])
def test_dtypes_in_either_wording(word: str, name: str, size: int) -> None:
    assert (torch_dtype(word), item_bytes(word)) == (name, size)


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(InvalidSpecError, match=r"unknown dtype 'auto'; valid: fp32"):
        item_bytes("auto")
