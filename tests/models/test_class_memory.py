import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semiseg.models.class_memory import ClassMemory


class PlainMemory:
    """ClassMemory's promise, as lists of features, newest first."""

    def __init__(self, num_classes: int, per_class: int) -> None:
        self.rows: list[list[tuple[float, ...]]] = [[] for _ in range(num_classes)]
        self.per_class = per_class

    def add(
        self, features: Tensor, labels: Tensor, scores: Tensor | None, limit: int | None, rank_all: bool
    ) -> None:
        for c in range(len(self.rows)):
            mine = [i for i in range(len(labels)) if labels[i] == c]
            too_many = len(mine) > (self.per_class if limit is None else limit)
            if scores is not None and (rank_all or too_many):
                mine.sort(key=lambda i: -float(scores[i]))
            new = [tuple(features[i].tolist()) for i in mine[:limit]]
            self.rows[c] = (new + self.rows[c])[: self.per_class]

    def stacked(self) -> tuple[list[tuple[float, ...]], list[int]]:
        return (
            [row for rows in self.rows for row in rows],
            [c for c, rows in enumerate(self.rows) for _ in rows],
        )


def contents(memory: ClassMemory) -> tuple[list[tuple[float, ...]], list[int]]:
    features, labels = memory.stacked()
    return [tuple(row) for row in features.tolist()], labels.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 4))
def test_it_is_a_plain_list_of_the_newest(seed: int, per_class: int, num_classes: int) -> None:
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    memory, plain = ClassMemory(num_classes, per_class, 3), PlainMemory(num_classes, per_class)
    for _ in range(5):
        n = chance.randrange(12)
        features = torch.randn(n, 3, generator=generator)
        labels = torch.randint(-1, num_classes + 1, (n,), generator=generator)
        labels[labels == num_classes] = 255
        scores = torch.rand(n, generator=generator) if chance.random() < 0.7 else None
        limit = chance.choice([None, 1, 2, 9])
        rank_all = chance.random() < 0.5
        memory.add(features, labels, scores, limit, rank_all=rank_all)
        plain.add(features, labels, scores, limit, rank_all)
        assert contents(memory) == plain.stacked()


def test_the_highest_scores_stay_and_the_oldest_go() -> None:
    memory = ClassMemory(num_classes=2, per_class=3, dim=1)
    memory.add(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1]))
    rows, labels = torch.tensor([[3.0], [4.0], [5.0], [9.0]]), torch.tensor([1, 1, 1, 255])
    memory.add(rows, labels, scores=torch.tensor([0.1, 0.9, 0.5, 1.0]), limit=2)
    features, labels = memory.stacked()
    assert features[:, 0].tolist() == [4, 5, 1]
    assert labels.tolist() == [1, 1, 1]


def test_rows_that_all_fit_keep_their_order_without_rank_all() -> None:
    """Class 0 brings as many rows as the limit, class 1 one more: only class 1 is ordered."""
    memory = ClassMemory(num_classes=2, per_class=2, dim=1)
    memory.add(
        torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]),
        torch.tensor([0, 1, 0, 1, 1]),
        scores=torch.tensor([0.1, 0.1, 0.9, 0.2, 0.3]),
        limit=2,
        rank_all=False,
    )
    assert memory.features[:, :, 0].tolist() == [[1, 3], [5, 4]]


def test_empty_places_are_ignored_by_their_label() -> None:
    memory = ClassMemory(num_classes=2, per_class=2, dim=1)
    assert memory.labels().tolist() == [[255, 255], [255, 255]]
    memory.add(torch.tensor([[1.0]]), torch.tensor([1]))
    assert memory.labels().tolist() == [[255, 255], [1, 255]]


def test_it_takes_no_gradient() -> None:
    memory = ClassMemory(1, 2, 2)
    memory.add(torch.ones(1, 2, requires_grad=True), torch.zeros(1, dtype=torch.int64))
    assert not memory.stacked()[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_keeps_float32_whatever_comes(dtype: torch.dtype) -> None:
    memory = ClassMemory(1, 2, 2)
    memory.add(torch.full((1, 2), 0.5, dtype=dtype), torch.tensor([0], dtype=torch.uint8))
    assert memory.stacked()[0].tolist() == [[0.5, 0.5]]
    assert memory.features.dtype == torch.float32


def test_state_dict_carries_it(tmp_path: Path) -> None:
    memory = ClassMemory(3, 4, 2)
    memory.add(torch.randn(9, 2), torch.arange(9) % 2)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    restored = ClassMemory(3, 4, 2)
    restored.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert contents(restored) == contents(memory)
