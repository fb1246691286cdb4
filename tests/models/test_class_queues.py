from collections import deque

import pytest
import torch

from semiseg.models.class_queues import ClassQueues

CLASSES, LENGTH, DIM = 3, 7, 2


@pytest.mark.parametrize("rows", [1, 4, LENGTH])
def test_each_class_keeps_its_newest(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    queues = ClassQueues(CLASSES, LENGTH, DIM)
    expected: list[deque[tuple[float, ...]]] = [deque(maxlen=LENGTH) for _ in range(CLASSES)]
    for _ in range(30):
        features = torch.rand(CLASSES, rows, DIM, generator=generator)
        number = torch.randint(rows + 1, (CLASSES,), generator=generator)
        queues.add(features, number)
        for c in range(CLASSES):
            expected[c].extend(tuple(row) for row in features[c, : number[c]].tolist())
            assert queues.count[c] == len(expected[c])
            held = queues.features[c, : queues.count[c]].tolist()
            assert sorted(map(tuple, held)) == sorted(expected[c])


def test_draws_come_from_what_a_class_holds_evenly() -> None:
    torch.manual_seed(0)
    queues = ClassQueues(CLASSES, LENGTH, 1)
    queues.add(torch.arange(12.0).view(CLASSES, 4, 1), torch.tensor([4, 1, 0]))
    drawn = queues.drawn(200, 10)
    assert drawn.shape == (CLASSES, 200, 10, 1)
    counts = torch.bincount(drawn[0].flatten().long(), minlength=4) / 2000
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.04)
    assert (drawn[1] == 4).all()


def test_a_state_restores_the_places_too() -> None:
    torch.manual_seed(0)
    one, other = ClassQueues(CLASSES, LENGTH, DIM), ClassQueues(CLASSES, LENGTH, DIM)
    one.add(torch.rand(CLASSES, 5, DIM), torch.tensor([5, 3, 0]))
    other.load_state_dict(one.state_dict())
    more = torch.rand(CLASSES, 5, DIM)
    for queues in (one, other):
        queues.add(more, torch.tensor([4, 5, 1]))
    assert torch.equal(one.features, other.features)
