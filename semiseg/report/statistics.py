"""Summarise figures: mean, deviation, interval, and the smallest difference that they can show."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 10  # figures; of fewer, the bootstrap's interval is too short


@dataclass(frozen=True)
class Summary:
    """A sample of independent figures: in a table, one for each labelled set."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / self.count

    @property
    def std(self) -> float | None:
        """Standard deviation with n - 1; None for one figure."""
        if self.count == 1:
            return None
        squares = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (self.count - 1))

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean; None for one figure.

        It is Student's t interval, and from ten figures on the percentile bootstrap, the same at every call.
        """
        if self.smallest is None:
            return None
        if self.count < BOOTSTRAP_FROM:
            return self.mean - self.smallest, self.mean + self.smallest
        from scipy import stats  # takes most of a second to import, and planning needs none of it

        found = stats.bootstrap(
            (np.asarray(self.values),),
            np.mean,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)

    @property
    def smallest(self) -> float | None:
        """The smallest mean whose t interval excludes zero, t(0.975, n - 1) s / sqrt(n); None for one."""
        if self.std is None:
            return None
        quantile = float(stdtrit(self.count - 1, (1 + CONFIDENCE) / 2))
        return quantile * self.std / math.sqrt(self.count)


def summarise(values: Iterable[float]) -> Summary | None:
    """Return the summary of ``values``; None where there are none."""
    sample = tuple(values)
    return Summary(sample) if sample else None
