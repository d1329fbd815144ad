"""The group size that a model declares is what the suite on memory, the profile and ``llminfer memory`` predict with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llminfer.cli import main
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.memory.observe import MemoryProfile
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.stored import declared_groups, read_stored
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome
from suites import test_layout as layout_suite
from suites import test_memory as memory_suite
from tests.support.faults import checkpoints
from tests.support.paths import ASSETS


class HoldsFiles:
    """An engine that holds the tensors of a checkpoint as they lie on disk."""

    def __init__(self, path: Path, quantization: str) -> None:
        stored = sum(parameter.stored_bytes for parameter in read_stored(path).layout.parameters)
        self.spec = EngineSpec("transformers", model=str(path), quantization=quantization)
        self.model, self.info = Model(str(path)), SimpleNamespace(dtype="bf16", device="cuda", capabilities=())
        self._memory = MemoryReport("cuda", stored, 0, stored, stored, stored, "the files", 0)

    def supports(self, _capability: str) -> bool:
        return False

    def memory(self) -> MemoryReport:
        return self._memory

    def rank_layouts(self) -> tuple[object, ...]:
        return ()


@pytest.fixture(params=["gptq", "awq", "w4a16"])
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def weighed(path: Path, quantization: Any) -> Any:
    """The verdict of the suite on weights, and the line of the profile."""
    engine: Any = HoldsFiles(path, quantization)
    verdicts: Any = []
    memory_suite.test_weights_take_the_bytes_that_the_configuration_implies(engine, verdicts.append)
    baseline: Any = SimpleNamespace(keep=lambda *_, **__: None)
    (line, *_) = MemoryProfile(engine, baseline, lambda *_: None).take()
    return verdicts[0], line


@pytest.mark.parametrize("size", [32, 128])
def test_the_suite_and_the_memory_profile_predict_with_the_declared_group_size(name: Any, size: int, tmp_path: Path) -> None:
    path = checkpoints.regroup(ASSETS / name, tmp_path / name, size)
    verdict, line = weighed(path, name)
    assert verdict.outcome is Outcome.PASS
    assert (line.line, line.difference, line.within) == ("weights", 0, True)


@pytest.mark.parametrize("left", [False, True])
def test_a_variant_of_a_format_is_a_visible_skip_in_every_suite_that_predicts(name: Any, tmp_path: Path, left: bool) -> None:
    """Of 8 bits, with zero points, or with a matrix left in 16 bits: the tensors that it has are not those declared here."""
    engine: Any = HoldsFiles(ASSETS / name, name)
    weights = {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False}
    changed: dict[str, Any] = {"config_groups": {"a": {"weights": weights}}} if name == "w4a16" else {"bits": 8}
    if left:
        changed = {"modules_to_not_convert": ["lm_head", "o_proj"]}
    engine.model = Model(str(checkpoints.declare(ASSETS / name, tmp_path / name, **changed)))
    baseline: Any = SimpleNamespace()
    profile = MemoryProfile(engine, baseline, lambda *_: None)
    verdicts: Any = []
    for judged in (
        lambda: memory_suite.test_weights_take_the_bytes_that_the_configuration_implies(engine, verdicts.append),
        lambda: layout_suite.test_every_parameter_is_stored_as_declared(engine, verdicts.append),
        profile.take,
    ):
        said = "leaves o_proj in 16 bits" if left else f"stored as {name} (of 8 bits|with zero points), of which no layout"
        with pytest.raises(UnsupportedError, match=said):
            judged()
    assert not verdicts


def test_groups_that_are_not_those_declared_are_found(name: Any, tmp_path: Path) -> None:
    held = checkpoints.regroup(ASSETS / name, tmp_path / name, 32)
    path = checkpoints.declare_groups(held, tmp_path / "declared", 128)
    verdict, line = weighed(path, name)
    assert verdict.outcome is Outcome.FAIL
    assert "larger than predicted" in str(verdict)
    assert not line.within
    assert line.difference == 3 * 24_576 * {"gptq": 2.5, "awq": 2.5, "w4a16": 2}[name]


def test_the_command_says_the_bytes_on_disk_and_those_of_other_groups(
    name: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(path: Path, *arguments: Any) -> Any:
        assert main(["memory", str(path), "--engine", "transformers", "--gpu", "A10", "--json", *arguments]) == 0
        # By role without the allocator's rounding, which the total has.
        return sum(json.loads(capsys.readouterr().out)["weights_by_role_bytes"].values())

    paths = {size: checkpoints.regroup(ASSETS / name, tmp_path / str(size), size) for size in (32, 64, 128)}
    held = {size: sum(each.stored_bytes for each in read_stored(path).layout.parameters) for size, path in paths.items()}
    assert {size: said(path) for size, path in paths.items()} == held
    assert {size: said(paths[128], "--group-size", str(size)) for size in paths} == held


def test_a_scale_for_all_of_a_row_is_a_group_of_its_own() -> None:
    weights = {"num_bits": 4, "strategy": "channel", "group_size": None}
    assert (
        declared_groups(
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}}
        )
        == -1
    )
    assert declared_groups({"quantization_config": {"quant_method": "gptq", "group_size": -1}}) == -1
    assert declared_groups({"quantization_config": {"quant_method": "awq", "q_group_size": 64}}) == 64
