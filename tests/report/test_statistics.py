"""Summaries, against pandas and scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from semiseg.report.statistics import BOOTSTRAP_FROM, summarise

VALUES = [0.01, 0.02, 0.04, 0.09, 0.05, 0.03, 0.08, 0.02, 0.07, 0.06]


def test_summary_of_three_figures_uses_n_minus_one() -> None:
    summary = summarise([0.40, 0.50, 0.60])
    assert summary is not None
    assert (summary.mean, summary.std, summary.count) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert summarise([]) is None
    single = summarise([0.3])
    assert single is not None
    assert (single.std, single.interval, single.smallest) == (None, None, None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_summary_agrees_with_pandas_and_its_interval_with_scipy(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert summary.mean == pytest.approx(pd.Series(values).mean(), abs=1e-12)
    assert summary.std == pytest.approx(pd.Series(values).std(), abs=1e-7)
    if np.ptp(values) > 1e-3:
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert summary.interval == pytest.approx((low, high))


def test_the_smallest_difference_is_where_the_interval_ends_at_zero() -> None:
    summary = summarise([0.04, 0.06, 0.08])
    assert summary is not None
    assert summary.smallest == pytest.approx(4.302653 * 0.02 / 3**0.5)
    moved = summarise(value - summary.mean + summary.smallest for value in summary.values)
    assert moved is not None
    assert moved.interval == pytest.approx((0, 2 * summary.smallest), abs=1e-12)


def test_from_ten_figures_on_the_interval_is_the_bootstrap() -> None:
    assert len(VALUES) == BOOTSTRAP_FROM
    summary, again = summarise(VALUES), summarise(VALUES)
    assert summary is not None
    assert again is not None
    assert summary.interval == again.interval
    assert summary.interval is not None
    rng = np.random.default_rng(1)
    means = rng.choice(VALUES, (100_000, len(VALUES))).mean(axis=1)
    assert summary.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-3)
    fewer = summarise(VALUES[:-1])
    assert fewer is not None
    assert fewer.interval == pytest.approx(stats.ttest_1samp(VALUES[:-1], 0).confidence_interval(0.95))
