"""Checks of a dataclass's fields for its __post_init__; each raises ValueError naming field and value.

A field may hold a number, a tuple of numbers, or None, which stands for no limit and passes.
"""

import math
from collections.abc import Iterator

MOST = 2**16  # pixels, images, channels or processes: more is a typing error, and would exhaust memory
SEEDS = 2**32


def one_of(config: object, name: str, *possible: object) -> None:
    """Refuse a value that is not among ``possible``."""
    value = getattr(config, name)
    if value not in possible:
        raise ValueError(f"{name}: '{value}' is none of {', '.join(map(str, possible))}")


def at_least(config: object, least: float, *names: str) -> None:
    """Refuse numbers below ``least`` and numbers that are not finite."""
    for name, number in _numbers(config, names):
        if not least <= number < math.inf:
            raise ValueError(f"{name}: {number} is not at least {least}")


def positive(config: object, *names: str) -> None:
    """Refuse numbers that are not positive and finite."""
    for name, number in _numbers(config, names):
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: {number} is not a positive number")


def within(config: object, low: float, high: float, *names: str) -> None:
    """Refuse numbers outside [``low``, ``high``]."""
    for name, number in _numbers(config, names):
        if not low <= number <= high:
            raise ValueError(f"{name}: {number} is outside [{low}, {high}]")


def reached(config: object, name: str, steps: int) -> None:
    """Refuse a share of a run's ``steps`` after which no step is left."""
    share = getattr(config, name)
    if share * steps > steps - 1:
        raise ValueError(f"{name}: {share} leaves no later step in a run of {steps}; lower it")


def ascending(config: object, *names: str) -> None:
    """Refuse a pair whose first number is larger than its second."""
    for name in names:
        low, high = getattr(config, name)
        if not low <= high:
            raise ValueError(f"{name}: {[low, high]} does not ascend")


def _numbers(config: object, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield every number of the fields, with its field's name."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None:
                yield name, number
