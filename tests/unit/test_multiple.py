from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llminfer.stats.multiple import holm

P_VALUES = st.lists(st.floats(0.0, 1.0), max_size=20)


@settings(deadline=None)
@given(P_VALUES.filter(bool))
def test_it_is_the_correction_of_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats import multitest

    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1].tolist())


def test_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


@settings(deadline=None)
@given(P_VALUES)
def test_it_lies_between_the_p_value_and_bonferroni(p_values: list[float]) -> None:
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p_value <= adjusted <= min(1.0, len(p_values) * p_value)


@pytest.mark.parametrize("p_value", [-0.1, 1.1, float("nan")])
def test_no_probability(p_value: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, p_value])
