"""One profile an engine: complete for those of this package, and what one leaves out is said, never another engine's rule."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import pytest_llminfer
from pytest_llminfer.engines import profiles
from pytest_llminfer.engines.capabilities import engines_that_answer, possible_capabilities
from pytest_llminfer.engines.profiles import BUILT_IN, profile
from pytest_llminfer.engines.profiles.base import Build, Installation, Profile, Recipe
from pytest_llminfer.errors import InvalidSpecError, UnsupportedError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.predict.layout import expected_layout, expected_rank_layouts
from pytest_llminfer.predict.plan import Deployment, plan_memory
from pytest_llminfer.predict.rules import DeviceSharing, EngineRules, Splitting, Storage
from pytest_llminfer.predict.weights import held_weights
from pytest_llminfer.spec import EngineSpec
from tests.support.paths import REPOSITORY, SUITES

PACKAGE = Path(pytest_llminfer.__file__).parent
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
SHAPE = ModelShape.from_config(CONFIG)
SILENT = Profile(name="silent", backend="silent:Backend", takes_gpus=False)
HOLDS = Profile(name="silent", backend="silent:Backend", takes_gpus=False, storage=Storage())
CELL = EngineSpec("silent", weights="dummy", quantization="int8")


def layout(engine: Profile, quantization: str = "none") -> object:
    return expected_layout(shape=SHAPE, dtype="bf16", quantization=quantization, engine=engine)


def ranks(tp: int, pp: int) -> object:
    return expected_rank_layouts(shape=SHAPE, dtype="bf16", quantization="none", engine=HOLDS, tp=tp, pp=pp)


UNSAID: dict[str, tuple[str, Callable[[], object]]] = {
    "a layout": ("storage", lambda: layout(SILENT)),
    "weights": ("storage", lambda: held_weights(SHAPE, dtype="bf16", engine=SILENT)),
    "tensor ranks": ("splitting", lambda: ranks(2, 1)),
    "stages": ("splitting", lambda: ranks(1, 2)),
    "rotary tables": ("rotary_bytes", lambda: rope_bytes(CONFIG, SHAPE, engine=SILENT, dtype="bf16")),
    "a memory plan": ("sharing", lambda: plan_memory(CONFIG, Deployment(SILENT), total=1 << 30)),
    "dummy weights by device": ("dummy_weights", lambda: SILENT.draws_on_device(CELL)),
    "dummy weights by rank": ("dummy_weights", lambda: SILENT.draws_per_rank(CELL)),
    "repacking": ("repacks", lambda: SILENT.layout_depends_on_device(CELL)),
    "installation": ("installation", SILENT.installed_as),
}
"""What is asked of a profile → the field that it leaves out."""


@pytest.mark.parametrize("what", UNSAID)
def test_what_a_profile_does_not_say_names_engine_and_field(what: str) -> None:
    name, asked = UNSAID[what]
    with pytest.raises(UnsupportedError, match=f"is not known here; its profile has to say it: '{name}' of silent$"):
        asked()


def test_every_field_that_may_be_left_out_is_asked_above() -> None:
    unset = {field.name for field in dataclasses.fields(Profile) if field.default is None}
    # What a test needs of these two is collected where they say so, or where nothing is said and the backend is asked.
    assert unset == {name for name, _ in UNSAID.values()} | {"capabilities", "has_transformers"}


def test_a_quantization_of_an_engine_without_formats_is_a_visible_skip() -> None:
    with pytest.raises(UnsupportedError, match="how silent stores quantization 'int8' on cpu is not known here"):
        layout(HOLDS, "int8")


def test_cells_that_need_no_rule_ask_for_none() -> None:
    real = EngineSpec("silent")
    assert not SILENT.draws_on_device(real)
    assert not SILENT.layout_depends_on_device(real)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_engine_has_a_profile_of_its_name_and_a_backend_that_is_there(name: str) -> None:
    found = profile(name)
    module, _, cls = found.backend.partition(":")
    tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
    assert (found.name, module.split(".")[3]) == (name, name)
    assert cls in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert profiles.backend(name) == {"backend": found.backend}


def test_there_is_one_module_an_engine() -> None:
    modules = {path.stem for path in (PACKAGE / "engines" / "profiles").glob("*.py")}
    assert modules - {"__init__", "base", "installed"} == set(BUILT_IN)


@pytest.mark.parametrize("cls", [EngineRules, Profile, Storage, Splitting, DeviceSharing, Installation, Build, Recipe])
def test_every_field_is_told_in_the_docstring(cls: type) -> None:
    inherited = {field.name for base in cls.__bases__ if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)}
    own = {field.name for field in dataclasses.fields(cls)} - inherited
    told = " ".join(str(cls.__doc__).split())
    assert [name for name in own if not re.search(rf"\b{name}(: |, \w+: |``)", told)] == []


def test_what_an_engine_could_answer_is_in_its_profile() -> None:
    assert "compare_cache_paths" in (possible_capabilities(EngineSpec("transformers")) or ())
    assert "compare_cache_paths" not in (possible_capabilities(EngineSpec("transformers", tp=2)) or ())
    assert engines_that_answer("cache_counters") == ("sglang", "vllm")
    assert engines_that_answer("telepathy") == ()


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(InvalidSpecError, match=r"unknown engine 'simulate'; valid: llamacpp, openai, .* Did you mean 'simulated'"):
        profile("simulate")


def tables(tree: ast.AST) -> list[int]:
    """Lines of dictionaries with two engines or more among their keys, and of sequences and sets with two or more in them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            held: list[ast.expr | None] = list(node.keys)
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            held = list(node.elts)
        else:
            continue
        if len({each.value for each in held if isinstance(each, ast.Constant)} & set(BUILT_IN)) > 1:
            found.append(node.lineno)
    return found


def test_no_table_is_keyed_by_engines_outside_of_profiles_and_backends() -> None:
    rooms = (PACKAGE / "engines" / "profiles", PACKAGE / "worker" / "backends")
    files = [path for path in (*PACKAGE.rglob("*.py"), *SUITES.rglob("*.py")) if not any(map(path.is_relative_to, rooms))]
    assert len(files) > 150
    found = {str(path.relative_to(REPOSITORY)): tables(ast.parse(path.read_text())) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_declaration_is_keyed_by_engines_outside_of_profiles() -> None:
    def keys(table: dict[str, object]) -> set[str]:
        return set(table) | {key for each in table.values() if isinstance(each, dict) for key in keys(each)}

    files = [path for path in PACKAGE.rglob("*.toml") if path.parent.name != "profiles"]
    assert {path.name for path in files} >= {"declared_formats.toml", "shards.toml"}
    for path in files:
        assert not keys(tomllib.loads(path.read_text())) & set(BUILT_IN), path


@pytest.mark.parametrize(
    "code",
    [
        'RULES = {\n    "vllm": 1,\n    "sglang": 2,\n}',
        'if engine in ("simulated", "vllm"):\n    pass',
        'def of(engine):\n    return {"llamacpp", "vllm"}',
        'x = [\n    "transformers", other, "vllm"]',
    ],
)
def test_a_table_keyed_by_engines_is_found(code: str) -> None:
    assert tables(ast.parse(code))
    assert not tables(ast.parse(code.replace("vllm", "cuda")))
