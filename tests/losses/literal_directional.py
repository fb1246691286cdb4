"""DCC's directional contrast as printed, pair by pair in float64, and rows to try it on."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

SWITCHES = ("directional", "positive_filter", "negative_sampling")
COMBINATIONS = [
    {**dict(zip(SWITCHES, states, strict=True)), "normalize": mean}
    for *states, mean in itertools.product(*[(False, True)] * 3, ("overlap", "selected"))
]
Rows = dict[str, Tensor]


def example(n: int = 14, m: int = 23, dim: int = 6, seed: int = 0) -> Rows:
    """Draw float64 rows: some confidences tie, one lies on the threshold, labels are few."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int) -> Tensor:
        return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)

    anchor_confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    positive_confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    if n >= 6:
        anchor_confidence[:6] = torch.tensor([0.9, 0.3, 0.5, 0.5, 0.99, 0.2])
        positive_confidence[:6] = torch.tensor([0.9, 0.3, 0.75, 0.76, 0.9, 0.95])
    return {
        "anchors": unit(n),
        "positives": unit(n),
        "anchor_confidence": anchor_confidence,
        "positive_confidence": positive_confidence,
        "anchor_labels": torch.randint(3, (n,), generator=generator),
        "negatives": unit(m),
        "negative_labels": torch.randint(3, (m,), generator=generator),
    }


def selection(rows: Rows, directional: bool, positive_filter: bool, threshold: float = 0.75) -> list[int]:
    selected = []
    for i in range(len(rows["anchors"])):
        own, other = float(rows["anchor_confidence"][i]), float(rows["positive_confidence"][i])
        if (own < other or not directional) and (other > threshold or not positive_filter):
            selected.append(i)
    return selected


def reference(
    rows: Rows,
    *,
    temperature: float = 0.1,
    threshold: float = 0.75,
    directional: bool = True,
    positive_filter: bool = True,
    negative_sampling: bool = True,
    normalize: str = "overlap",
) -> tuple[float, Tensor]:
    """Return the loss as printed, and its gradient by the anchors, pair by pair in float64."""
    anchors, positives, negatives = (
        rows[name].detach().double() for name in ("anchors", "positives", "negatives")
    )
    anchors.requires_grad_()
    selected = selection(rows, directional, positive_filter, threshold)
    total = anchors.sum() * 0
    for i in selected:
        positive = (anchors[i] * positives[i]).sum() / temperature
        denominator = [positive]
        for j in range(len(negatives)):
            if rows["negative_labels"][j] != rows["anchor_labels"][i] or not negative_sampling:
                denominator.append((anchors[i] * negatives[j]).sum() / temperature)
        total = total + torch.stack(denominator).logsumexp(0) - positive
    count = len(anchors) if normalize == "overlap" else len(selected)
    loss = total / max(count, 1)
    (gradient,) = torch.autograd.grad(loss, anchors)
    return float(loss.detach()), gradient


def assert_close(one: tuple[float, Tensor], other: tuple[float, Tensor], tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=1e-300)
    assert torch.linalg.vector_norm(one[1].double() - other[1]) <= tolerance * torch.linalg.vector_norm(
        other[1]
    )


def as_type(rows: Rows, dtype: torch.dtype) -> Rows:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in rows.items()}
