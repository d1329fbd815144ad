"""Every way through the KV cache of a real worker: sound ones pass, and each injected fault is caught and told by its own name."""

from __future__ import annotations

from typing import Any

import pytest
from kv_fault_table import TABLE, Fault, clean

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence
from pytest_llminfer.verdict import Outcome
from tests.support.engines import faulty_transformers
from tests.support.engines.faulty_transformers import KV_FAULTS
from tests.support.paths import SUITES

engine, faulty = faulty_transformers.engine, faulty_transformers.faulty
SLIDING = "gemma-3-4b"
MINE = """
    def test_my_model(kv_equivalence):
        kv_equivalence.structure(families=("chunked", "crop"))
        kv_equivalence.first_layer()
"""


@pytest.fixture
def found() -> list[Any]:
    return []


@pytest.fixture
def equivalence(engine: Engine, found: list[Any]) -> KVEquivalence:
    """Its verdicts are kept instead of judged."""
    return KVEquivalence(engine, found.append)


def kinds(verdicts: list[Any]) -> list[str]:
    return [verdict.key for verdict in verdicts if verdict.outcome is not Outcome.PASS]


CASES = [(fault, shape) for fault in TABLE for shape in ("own", SLIDING) if shape == SLIDING or not fault.windowed]


@pytest.mark.parametrize(("fault", "shape"), CASES, ids=lambda entry: getattr(entry, "name", entry))
def test_a_fault_is_caught_by_every_family_in_which_it_acts(
    equivalence: KVEquivalence, found: list[Any], faulty: Any, fault: Fault, shape: str
) -> None:
    faulty(fault.name)
    for family in fault.families:
        if (family, shape) in {("sliding", "own"), ("fp8", SLIDING)}:
            continue
        told = kinds(equivalence.examine(family, shape, examples=1, shortened=False))
        assert set(told) == {fault.kind}, family
    if shape == "own":
        equivalence.first_layer()
        assert kinds(found) == ([fault.kind] if fault.first_layer else [])


def test_a_block_of_the_first_layer_shows_in_its_own_dtype(equivalence: KVEquivalence, found: list[Any], faulty: Any) -> None:
    faulty("wrong_block", layer=0)
    equivalence.first_layer()
    assert kinds(found) == [Kind.BLOCK]
    assert "tokens 16 to 31 hold keys and values of tokens 0 to 15" in found[0].details[0]


@pytest.mark.parametrize("family", ["decode", "fp8", "quantized"])
def test_a_fault_of_a_deeper_layer_shows_in_a_quantized_cache_too(equivalence: KVEquivalence, faulty: Any, family: str) -> None:
    assert kinds(equivalence.examine(family, "own", examples=2, shortened=False)) == []
    faulty("exchanged")
    told = kinds(equivalence.examine(family, "own", examples=2, shortened=False))
    assert set(told) == {Kind.ATTENTION}


def test_a_window_that_is_too_long_reaches_too_far(equivalence: KVEquivalence, found: list[Any], faulty: Any) -> None:
    equivalence.window(SLIDING)
    assert kinds(found) == []
    faulty("long_window")
    equivalence.window(SLIDING)
    assert len(kinds(found)) == 1
    assert "windows are too long" in found[1].details[0]


def test_a_sound_cache_is_told_to_be_sound_and_what_is_refused_is_named(equivalence: KVEquivalence, found: list[Any]) -> None:
    equivalence.structure(SLIDING, families=("sliding", "fp8"), examples=2)
    assert [verdict.outcome for verdict in found] == [Outcome.PASS] * 3
    assert found[-1].key == "1 of 2 families"
    assert found[-1].details[0].startswith("fp8 was not: transformers refuses")
    with pytest.raises(UnsupportedError, match="no layer of own has a window"):
        equivalence.structure(families=("sliding",))
    with pytest.raises(UnsupportedError, match="no layer of own has a window"):
        equivalence.window()


def test_a_way_that_fails_is_told_in_its_shortest_form(equivalence: KVEquivalence, faulty: Any) -> None:
    faulty("shifted_after_crop")
    found = equivalence.examine("crop", examples=3)
    assert found[0].key == Kind.POSITION
    assert "sequences of 36 tokens by chunks of 1, 35, crop=1, crop_extra=1" in found[0].details[1]


def test_what_does_not_exist_is_refused_by_name(equivalence: KVEquivalence) -> None:
    with pytest.raises(BadInputError, match="unknown family of cache paths 'decoded'; valid: decode, chunked"):
        equivalence.structure(families=("decoded",))
    with pytest.raises(BadInputError, match="unknown structure 'gpt3'; valid: own, gpt2"):
        equivalence.structure("gpt3")
    with pytest.raises(BadInputError, match="at least 24 tokens"):
        equivalence.first_layer([[1, 2, 3]])


def test_drawn_configurations_raise_no_false_alarm(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(engine, 12) == []
    assert "12 drawn configurations" in capsys.readouterr().out


def test_the_suite_is_green_and_a_test_of_ones_own_is_red_with_a_fault(pytester: pytest.Pytester) -> None:
    (pytester.path / "test_kv_equivalence.py").write_text((SUITES / "test_kv_equivalence.py").read_text())
    faulty = f'def test_faulty(engine): engine.run("{KV_FAULTS}::shifted_after_crop")'
    pytester.makepyfile(test_one_faulty=faulty, test_two_mine=MINE)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-k", "own-crop or own-prefix or first_layer or windows or faulty or mine"
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["*FAIL: own, crop: *", "*position bug: in layer 0, keys of tokens * differ, and values are equal*"]
    )


def test_an_engine_without_cache_paths_skips_visibly(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MINE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs", "--engine=simulated")
    result.stdout.fnmatch_lines(["SKIPPED*simulated cannot answer 'compare_cache_paths'; engines that do: transformers"])
