"""Exact resume: SIGKILL at 20 random points changes no bit of a run's ending."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests import kill_often

# No memory, a memory, a bank; tests/training/test_loop.py resumes every method.
RECIPES = ("supervised", "cmb", "dcc")


def test_twenty_kills_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kill_often.create(tmp_path)
    draw, where = random.Random(0), Counter[str]()
    for place, recipe in enumerate(RECIPES):
        times = len(range(place, 20, len(RECIPES)))
        where += kill_often.kill(kill_often.forked, recipe, times, draw)
    assert where.total() == 20
    assert where["in the midst of a checkpoint"] > 0
    assert len(where) > 1
