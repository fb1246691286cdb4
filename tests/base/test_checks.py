import math
from dataclasses import dataclass
from typing import Any

import pytest

from semiseg.base import checks


@dataclass(frozen=True)
class Example:
    value: Any


@pytest.mark.parametrize("value", [1, 1.5, (1, 2.0), None, 10**6])
def test_numbers_of_at_least_one_pass(value: Any) -> None:
    checks.at_least(Example(value), 1, "value")


@pytest.mark.parametrize("value", [0, -1.0, 0.999, (1, 0), math.nan, math.inf, (1.0, math.nan)])
def test_smaller_and_infinite_numbers_are_refused_by_their_field(value: Any) -> None:
    with pytest.raises(ValueError, match="value: "):
        checks.at_least(Example(value), 1, "value")


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, (2.0, 0.0)])
def test_only_finite_numbers_above_zero_are_positive(value: Any) -> None:
    checks.positive(Example(1e-9), "value")
    with pytest.raises(ValueError, match="value: "):
        checks.positive(Example(value), "value")


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, (0.5, 2)])
def test_a_range_holds_its_ends(value: Any) -> None:
    for inside in (0, 1, 0.5, (0.0, 1.0), None):
        checks.within(Example(inside), 0, 1, "value")
    with pytest.raises(ValueError, match="value: "):
        checks.within(Example(value), 0, 1, "value")


@pytest.mark.parametrize("value", [(1, 0), (math.nan, 1), (1, math.nan)])
def test_a_pair_that_descends_is_refused(value: Any) -> None:
    checks.ascending(Example((1, 1)), "value")
    with pytest.raises(ValueError, match="value: "):
        checks.ascending(Example(value), "value")


def test_a_value_is_one_of_those_named() -> None:
    checks.one_of(Example("a"), "value", "a", "b")
    with pytest.raises(ValueError, match="value: 'c'"):
        checks.one_of(Example("c"), "value", "a", "b")
