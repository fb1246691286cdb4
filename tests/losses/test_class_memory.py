import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.losses import class_memory, class_memory_loss

CLASSES, DIM = 5, 6


def by_loops(
    predictions: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    prediction_scores: Tensor,
    memory_scores: Tensor,
    num_classes: int,
    least: int = 1,
) -> Tensor:
    """Compute the loss pair by pair: D = w_p w_z (1 − cos(p, z)), weights of mean one in a class."""
    total = torch.zeros((), dtype=torch.float64)
    for c in range(num_classes):
        ours = [i for i in range(len(labels)) if labels[i] == c]
        theirs = [j for j in range(len(memory_labels)) if memory_labels[j] == c]
        if len(ours) < least or len(theirs) < least:
            continue
        mean_score = sum(prediction_scores[i] for i in ours) / len(ours)
        mean_memory_score = sum(memory_scores[j] for j in theirs) / len(theirs)
        distance = torch.zeros((), dtype=torch.float64)
        for i in ours:
            for j in theirs:
                p, z = predictions[i], memory[j]
                cosine = (p * z).sum() / ((p * p).sum().sqrt() * (z * z).sum().sqrt())
                weight = prediction_scores[i] / mean_score * (memory_scores[j] / mean_memory_score)
                distance = distance + weight * (1 - cosine)
        total = total + distance / (len(ours) * len(theirs))
    return total / num_classes


def example(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Draw a case: class 0 has one pixel, 1 no memory, 2 no pixel, 3 one memory, 4 many."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 1, 3, 3, 3, 4, 4, 4, 4, 4, 255, 255, -1, 7])
    memory_labels = torch.tensor([0, 0, 2, 2, 3, 4, 4, 4, 4, 255, 255])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    memory_labels = memory_labels[torch.randperm(len(memory_labels), generator=generator)]
    n, m = len(labels), len(memory_labels)
    return {
        "predictions": (3 * torch.randn(n, DIM, generator=generator)).to(dtype).requires_grad_(),
        "labels": labels,
        "memory": torch.randn(m, DIM, generator=generator).to(dtype).requires_grad_(),
        "memory_labels": memory_labels,
        "prediction_scores": torch.rand(n, generator=generator).add(0.01).to(dtype).requires_grad_(),
        "memory_scores": torch.rand(m, generator=generator).add(0.01).to(dtype).requires_grad_(),
    }


def in_double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().double().requires_grad_() if value.requires_grad else value
        for name, value in inputs.items()
    }


def close(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    """Return whether all entries agree within ``relative`` of the largest one."""
    return bool((ours.double() - theirs).abs().max() <= relative * theirs.abs().max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("dtype", "relative", "gradient_relative"),
    [
        (torch.float64, 1e-12, 1e-12),
        (torch.float32, 1e-6, 1e-6),
        (torch.bfloat16, 1e-6, 2**-8),  # a bf16 gradient is rounded to 8 bits
    ],
)
def test_value_and_gradients_are_those_of_the_equations(
    seed: int, dtype: torch.dtype, relative: float, gradient_relative: float
) -> None:
    inputs = example(seed, dtype)
    reference = in_double(inputs)
    loss = class_memory_loss(**inputs, num_classes=CLASSES)
    expected = by_loops(**reference, num_classes=CLASSES)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert close(loss, expected, relative)
    for name in ("predictions", "memory", "prediction_scores", "memory_scores"):
        assert close(inputs[name].grad, reference[name].grad, gradient_relative), name


def test_two_unit_vectors_by_hand() -> None:
    """Pixel (1, 0) of score 1 and (0, 1) of score 3 against memory (1, 0): 1 − ⟨(1/4, 3/4), (1, 0)⟩ = 3/4."""
    loss = class_memory_loss(
        torch.tensor([[2.0, 0.0], [0.0, 5.0]]),
        torch.tensor([1, 1]),
        torch.tensor([[7.0, 0.0]]),
        torch.tensor([1]),
        torch.tensor([0.25, 0.75]),
        torch.tensor([0.3]),
        num_classes=2,
    )
    assert loss.item() == pytest.approx(0.75 / 2)


@pytest.mark.parametrize("least", [1, 2, 5, 6])
def test_a_class_with_too_few_rows_on_either_side_adds_zero(least: int) -> None:
    inputs = example(0)
    reference = in_double(inputs)
    loss = class_memory_loss(**inputs, num_classes=CLASSES, least=least)
    expected = by_loops(**reference, num_classes=CLASSES, least=least)
    assert close(loss, expected, 1e-6)
    loss.backward()
    labels = inputs["labels"]
    classes = [
        c for c in range(CLASSES) if min((labels == c).sum(), (inputs["memory_labels"] == c).sum()) >= least
    ]
    assert torch.equal(inputs["predictions"].grad.any(dim=1), torch.isin(labels, torch.tensor(classes)))


def test_features_that_agree_cost_nothing() -> None:
    rows = torch.tensor([[0.1, 0.2, 0.3]]).repeat(50, 1)
    labels, scores = torch.zeros(50, dtype=torch.int64), torch.full((50,), 0.5)
    loss = class_memory_loss(rows, labels, 4 * rows, labels, scores, scores, num_classes=1)
    assert abs(loss.item()) < 1e-12


def test_ignored_rows_take_no_gradient() -> None:
    inputs = example(0)
    class_memory_loss(**inputs, num_classes=CLASSES).backward()
    counted = torch.isin(inputs["labels"], torch.tensor([0, 3, 4]))  # classes on both sides
    assert torch.equal(inputs["predictions"].grad.any(dim=1), counted)


@pytest.mark.parametrize("empty", ["predictions", "memory"])
def test_nothing_on_one_side_is_zero_with_a_gradient_of_zero(empty: str) -> None:
    inputs = example(0)
    side = {"predictions": "labels", "memory": "memory_labels"}[empty]
    loss = class_memory_loss(**{**inputs, side: torch.full_like(inputs[side], 255)}, num_classes=CLASSES)
    loss.backward()
    assert loss.item() == 0
    assert not inputs["predictions"].grad.any()


def test_no_rows_at_all() -> None:
    empty, none = torch.zeros(0, DIM), torch.zeros(0)
    labels = torch.zeros(0, dtype=torch.int64)
    assert float(class_memory_loss(empty, labels, empty, labels, none, none, num_classes=2)) == 0


def test_scores_count_only_relative_to_their_class() -> None:
    inputs = example(1)
    scaled = {**inputs, "prediction_scores": inputs["prediction_scores"] / 7}
    loss = class_memory_loss(**inputs, num_classes=CLASSES)
    assert class_memory_loss(**scaled, num_classes=CLASSES).item() == pytest.approx(loss.item(), rel=1e-6)


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_no_matrix_of_all_pairs_is_made() -> None:
    n, m = 3000, 2000
    rows, memory = torch.randn(n, DIM, requires_grad=True), torch.randn(m, DIM)
    with Largest() as largest:
        loss = class_memory_loss(
            rows,
            torch.randint(CLASSES, (n,)),
            memory,
            torch.randint(CLASSES, (m,)),
            torch.rand(n),
            torch.rand(m),
            CLASSES,
        )
        loss.backward()
    assert math.isfinite(loss.item())
    assert largest.elements <= (n + m) * max(DIM, CLASSES)


def test_chunks_change_neither_the_loss_nor_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for numbers in (class_memory.CHUNK, 4 * DIM + 1):  # all rows at once; four at a time
        monkeypatch.setattr(class_memory, "CHUNK", numbers)
        inputs = in_double(example(3))
        loss = class_memory_loss(**inputs, num_classes=CLASSES)
        loss.backward()
        results.append([loss, *(inputs[name].grad for name in inputs if "labels" not in name)])
    assert all(close(one, other, 1e-12) for one, other in zip(*results, strict=True))
