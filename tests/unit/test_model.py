"""What is served, read without a framework."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.models.model import Model


@pytest.fixture(scope="module")
def reference() -> Model:
    return Model("reference")


def test_a_chat_is_chatml_and_ends_where_the_model_answers(reference: Model) -> None:
    ids = reference.chat("What is 2 + 3?")
    assert reference.decode(ids).endswith("assistant\n")
    text = reference._tokenizer.decode(ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>")


def test_digits_are_single_tokens(reference: Model) -> None:
    assert len(reference.encode("8675309")) == 7


def test_text_survives_encoding(reference: Model) -> None:
    text = "Greta buys 12 pens at 3 dollars.\nThat is 12 * 3 = 36 dollars.\n#### 36"
    assert reference.decode(reference.encode(text)) == text


def test_sample_prompts_are_distinct_and_within_the_vocabulary(reference: Model) -> None:
    prompts = reference.sample_prompts(16, 32)
    assert len({tuple(prompt) for prompt in prompts}) == 16
    assert all(len(prompt) == 32 and min(prompt) >= 0 and max(prompt) < reference.config["vocab_size"] for prompt in prompts)
    assert prompts == Model("reference").sample_prompts(16, 32)


def test_the_fingerprint_changes_with_the_weights(reference: Model, tmp_path: Path) -> None:
    for path in reference.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert Model(str(tmp_path)).sha256 == reference.sha256
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Model(str(tmp_path)).sha256 != reference.sha256


def test_a_bundled_shape_is_served_with_dummy_weights_only() -> None:
    assert Model("llama-3-8b", weights="dummy").id == "llama-3-8b-dummy"
    with pytest.raises(BadInputError, match="add --weights=dummy"):
        Model("llama-3-8b")


def test_a_shape_without_tokenizer_gives_drawn_prompts_of_several_lengths() -> None:
    model = Model("llama-3-8b", weights="dummy")
    assert len({len(prompt) for prompt in model.prompts(5)}) == 5
    with pytest.raises(BadInputError, match=r"has no tokenizer\.json: give token ids"):
        model.encode("text")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "llama-3-9b"])
def test_a_path_that_does_not_exist_names_the_ways_out(name: str) -> None:
    with pytest.raises(BadInputError, match=r"is no folder here; .*config.json.*Qwen/.*llama-3-8b"):
        Model(name)


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no readable config\.json"):
        Model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInputError, match="is not JSON"):
        Model(str(tmp_path))


def test_a_chat_template_may_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ raise_exception('no system role') }}"}))
    with pytest.raises(BadInputError, match="the chat template refuses the conversation: no system role"):
        Model(str(tmp_path)).chat("hi")


def test_nothing_of_this_brings_a_framework() -> None:
    assert not {"torch", "transformers"} & set(sys.modules)
