"""What is served, read without a framework."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.models import files
from pytest_llminfer.models.model import Model
from tests.support.paths import REPOSITORY


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


def test_recorded_baselines_keep_their_fingerprints(reference: Model) -> None:
    assert reference.sha256 == "1b699ac84f174dfaf314d8841dee780d072570839acc918e34961d8335497b31"
    dummy = Model("llama-3-8b", weights="dummy")
    assert dummy.sha256 == "350b9126d6ef4aae44c6f63599ab9495906804098926039a89321af49606047e"


MIB = 2**20


def large_model(folder: Path, name: str, changes: dict[int, bytes], size: int = 130 * MIB) -> str:
    """The fingerprint of a folder whose one weight file is zeros but for ``changes``, bytes by their offset."""
    (folder / "config.json").write_text("{}")
    with (folder / name).open("wb") as stream:
        stream.truncate(size)
        for offset, content in changes.items():
            stream.seek(offset)
            stream.write(content)
    return Model(str(folder)).sha256


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_a_fine_tune_of_the_same_shape_has_another_fingerprint(tmp_path: Path, name: str) -> None:
    same = large_model(tmp_path, name, {})
    assert large_model(tmp_path, name, {}) == same
    assert large_model(tmp_path, name, {}, 130 * MIB + 1) != same
    for changed in (0, 130 * MIB - 1):
        assert large_model(tmp_path, name, {changed: b"1"}) != same, f"byte {changed}"
    for start in range(0, 127, 7):
        assert large_model(tmp_path, name, {start * MIB + 12345: bytes([1]) * (130 * MIB // 63)}) != same, f"from MiB {start}"


def test_the_whole_header_of_a_large_safetensors_file_counts(tmp_path: Path) -> None:
    length = {0: (2 * MIB).to_bytes(8, "little")}
    between_slices = MIB
    same = large_model(tmp_path, "model.safetensors", length)
    assert large_model(tmp_path, "model.safetensors", {**length, between_slices: b"1"}) != same


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_weights_in_other_formats_count(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    seen = {Model(str(tmp_path)).sha256}
    for content in ("one", "two"):
        (tmp_path / name).write_text(content)
        seen.add(Model(str(tmp_path)).sha256)
    assert len(seen) == 3


def test_the_commit_stands_for_the_weights_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for commit in ("0a1b", "2c3d"):
        folder = tmp_path / "models--org--name" / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        monkeypatch.setattr(files, "_fetch_metadata", lambda _, folder=folder: folder)
        seen.append(Model("org/name").sha256)
        (folder / "model.safetensors").write_text("fetched by the engine meanwhile")
        assert Model("org/name").sha256 == seen[-1]
        seen.append(Model(str(folder)).sha256)
    by_id, by_path, other_commit, same_files = seen
    assert len({by_id, by_path, other_commit}) == 3
    assert same_files == by_path


def test_a_bundled_shape_is_served_with_dummy_weights_only() -> None:
    assert Model("llama-3-8b", weights="dummy").id == "llama-3-8b-dummy"
    assert Model("llama-3-8b", weights="dummy", called="mine").id == "mine-dummy"


def test_two_folders_of_one_name_may_be_called_otherwise_and_a_snapshot_is_of_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / ("0" * 39 + "1")
    for folder in (tmp_path / "a" / "checkpoint-500", tmp_path / "b" / "checkpoint-500", snapshot):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    one, other = Model(str(tmp_path / "a" / "checkpoint-500")), Model(str(tmp_path / "b" / "checkpoint-500"), called="run-b")
    assert (one.id, other.id) == ("checkpoint-500", "run-b")
    assert (one.revision, other.revision) == ("", "")
    assert (Model(str(snapshot)).id, Model(str(snapshot)).revision) == ("Qwen/Qwen3-0.6B", snapshot.name)
    assert Model(str(snapshot), called="mine").id == "mine"
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


def chat_model(folder: Path, template: object) -> Model:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return Model(str(folder))


def test_a_template_may_mark_the_words_of_the_model(tmp_path: Path) -> None:
    template = (
        "{% set seen = 1 %}{% for m in messages %}[{% generation %}{% set seen = 2 %}{{ m.content }}"
        "{% endgeneration %}]{% endfor %}{{ seen }}"
    )
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert chat_model(tmp_path, template).render_chat(messages) == "[hi][ho]1"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert chat_model(tmp_path, several).render_chat("hi") == "plain"
    assert not chat_model(tmp_path, [{"template": "nameless"}]).chat_template


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{% if %}", r"tokenizer_config\.json does not compile at line 2 \("),
        ("{% generation %}hi", r"does not compile at line 1 \("),
        ("{{ nothing.at.all }}", r"tokenizer_config\.json fails \(UndefinedError: 'nothing' is undefined\); fetch the file again"),
        ({"a": "b"}, "is a dict instead of text"),
    ],
)
def test_a_template_that_is_no_jinja_is_one_line(tmp_path: Path, template: object, said: str) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        chat_model(tmp_path, template).render_chat("hi")
    assert "\n" not in str(caught.value)


def test_a_template_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match=r"chat_template\.jinja cannot be read \(.*; fetch the file again"):
        Model(str(tmp_path)).render_chat("hi")


@pytest.mark.parametrize("config", [{"text_config": {"vocab_size": 9}}, {"vocab_size": None, "text_config": {"vocab_size": 9}}])
def test_the_vocabulary_may_stand_in_the_language_model_of_a_multimodal_one(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max(max(prompt) for prompt in Model(str(tmp_path)).sample_prompts(4, 32)) == 8


@pytest.mark.parametrize("config", [{}, {"vocab_size": "9"}, {"vocab_size": 0}, {"text_config": []}, {"vocab_size": True}])
def test_a_configuration_without_vocabulary_is_named(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=r"config\.json has no vocab_size as a positive whole number, .*: add it, or"):
        Model(str(tmp_path)).sample_prompts(1, 1)


def test_nothing_of_this_brings_a_framework() -> None:
    """In a process of its own: other tests of this one may have imported anything."""
    code = """
    import sys
    from pytest_llminfer.models.model import Model
    model = Model("reference")
    assert model.chat([{"role": "user", "content": "2 + 3"}]) and model.shape.layers and model.sha256
    assert not {"torch", "transformers"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    assets = REPOSITORY / "assets" / "gguf"
    for name in ("reference-Q8_0.gguf", "tokenizer.json"):
        (tmp_path / name).symlink_to(assets / name)
    model = Model(str(tmp_path))
    assert (Path(model.path).name, model.config["vocab_size"], model.has_tokenizer) == ("reference-Q8_0.gguf", 1024, True)
    (tmp_path / "reference-F16.gguf").symlink_to(assets / "reference-F16.gguf")
    with pytest.raises(
        BadInputError, match=r"2 GGUF files and no config\.json: name one of reference-F16\.gguf, reference-Q8_0\.gguf, as"
    ):
        Model(str(tmp_path))
