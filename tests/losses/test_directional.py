import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.losses import directional_contrastive_loss

SWITCHES = ("directional", "positive_filter", "negative_sampling")
COMBINATIONS = [
    {**dict(zip(SWITCHES, states, strict=True)), "normalize": mean}
    for *states, mean in itertools.product(*[(False, True)] * 3, ("overlap", "selected"))
]
Rows = dict[str, Tensor]


def example(n: int = 14, m: int = 23, dim: int = 6, seed: int = 0) -> Rows:
    """Float64 rows; confidences tie at some positions, one lies on the threshold, labels are few."""
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
    """The loss as printed, and its gradient by the anchors, pair by pair in float64."""
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


def computed(rows: Rows, **options: Any) -> tuple[float, Tensor]:
    rows = {**rows, "anchors": rows["anchors"].detach().clone().requires_grad_()}
    loss = directional_contrastive_loss(**rows, **options)
    (gradient,) = torch.autograd.grad(loss, rows["anchors"])
    return float(loss.detach()), gradient


def assert_close(one: tuple[float, Tensor], other: tuple[float, Tensor], tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=1e-300)
    assert torch.linalg.vector_norm(one[1].double() - other[1]) <= tolerance * torch.linalg.vector_norm(
        other[1]
    )


def as_type(rows: Rows, dtype: torch.dtype) -> Rows:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in rows.items()}


@pytest.mark.parametrize("options", COMBINATIONS)
def test_every_combination_of_switches_is_the_printed_equation(options: dict[str, Any]) -> None:
    rows = example()
    assert_close(computed(rows, **options), reference(rows, **options), 1e-12)
    single = as_type(rows, torch.float32)
    assert_close(computed(single, **options), reference(single, **options), 1e-6)
    for chunk, select_first in itertools.product((1, 9, 10**6), (False, True)):
        by_parts = computed(rows, **options, chunk=chunk, select_first=select_first)
        assert_close(by_parts, reference(rows, **options), 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01, 0.001, 1e-5])
def test_scores_that_overflow_a_naive_exp(temperature: float) -> None:
    rows = example()
    rows["negatives"][0], rows["negatives"][1] = rows["anchors"][3], -rows["anchors"][3]
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-6)):
        typed = as_type(rows, dtype)
        for options in COMBINATIONS:
            found = computed(typed, temperature=temperature, chunk=16, **options)
            assert_close(found, reference(typed, temperature=temperature, **options), tolerance)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75, 0.9])
def test_the_threshold(threshold: float) -> None:
    rows = example(seed=1)
    assert_close(computed(rows, threshold=threshold), reference(rows, threshold=threshold), 1e-12)


def test_at_the_scale_of_training_in_float32() -> None:
    rows = as_type(example(n=160, m=300, dim=128, seed=2), torch.float32)
    assert_close(computed(rows, chunk=1024), reference(rows), 1e-6)


def test_bf16_rows_are_summed_in_float32() -> None:
    rows = as_type(example(dim=16), torch.bfloat16)
    loss, gradient = computed(rows)
    expected_loss, expected = reference(rows)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradient.dtype == torch.bfloat16
    assert torch.allclose(gradient.double(), expected, rtol=2**-8, atol=0)  # one rounding to bf16


def test_autocast_changes_nothing() -> None:
    rows = as_type(example(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = computed(rows)
    expected_loss, expected = computed(rows)
    assert loss == expected_loss
    assert torch.equal(gradient, expected)


def test_two_positions_by_hand() -> None:
    """τ = 1, one negative of another class at a right angle: log(1 + e⁻¹), over two positions of overlap."""
    rows = {
        "anchors": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "positives": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "anchor_confidence": torch.tensor([0.5, 0.9]),
        "positive_confidence": torch.tensor([0.8, 0.8]),
        "anchor_labels": torch.tensor([0, 1]),
        "negatives": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "negative_labels": torch.tensor([1, 0]),
    }
    one = math.log1p(math.exp(-1))
    assert computed(rows, temperature=1.0)[0] == pytest.approx(one / 2)
    assert computed(rows, temperature=1.0, normalize="selected")[0] == pytest.approx(one)
    assert computed(rows, temperature=1.0, directional=False)[0] == pytest.approx(one)
    both = math.log(1 + math.exp(-1) + 1)  # the negative of its own class lies on the anchor
    assert computed(rows, temperature=1.0, negative_sampling=False)[0] == pytest.approx(both / 2)


@pytest.mark.parametrize("select_first", [False, True])
@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_no_negatives(select_first: bool, mean: str) -> None:
    none = example(m=0)
    same = example()
    same["negative_labels"] = torch.zeros_like(same["negative_labels"])
    same["anchor_labels"] = torch.zeros_like(same["anchor_labels"])
    for rows in (none, same):
        loss, gradient = computed(rows, normalize=mean, select_first=select_first, chunk=9)
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("select_first", [False, True])
@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_nothing_selected_is_zero_with_a_gradient_of_zero(select_first: bool, mean: str) -> None:
    rows = example()
    for changed in (
        rows | {"positive_confidence": torch.full_like(rows["positive_confidence"], 0.75)},
        rows | {"anchor_confidence": rows["positive_confidence"]},
        example(n=0),
    ):
        loss, gradient = computed(changed, normalize=mean, select_first=select_first)
        assert loss == 0
        assert not gradient.any()


def test_gradients_reach_the_anchors_only() -> None:
    rows = {name: each.requires_grad_(each.is_floating_point()) for name, each in example().items()}
    directional_contrastive_loss(**rows).backward()
    assert rows["anchors"].grad.any()
    assert all(each.grad is None for name, each in rows.items() if name != "anchors")


def test_only_selected_anchors_take_a_gradient() -> None:
    rows = example()
    for options in COMBINATIONS:
        _, gradient = computed(rows, **options)
        taken = [i for i in range(len(gradient)) if gradient[i].any()]
        assert taken == selection(rows, options["directional"], options["positive_filter"])


def test_rows_outside_the_overlap_and_places_without_a_negative_do_not_count() -> None:
    rows = example()
    valid = torch.arange(14) % 3 != 0
    negative_valid = torch.arange(23) % 4 != 1
    inside = {name: each[valid] for name, each in rows.items() if not name.startswith("negative")}
    filled = {name: each[negative_valid] for name, each in rows.items() if name.startswith("negative")}
    for options in COMBINATIONS:
        expected_loss, expected = computed(inside | filled, **options)
        for select_first in (False, True):
            loss, gradient = computed(
                rows, **options, valid=valid, negative_valid=negative_valid, select_first=select_first
            )
            assert loss == pytest.approx(expected_loss, rel=1e-12)
            assert torch.allclose(gradient[valid], expected, rtol=1e-12)
            assert not gradient[~valid].any()


def test_without_a_gradient_the_loss_is_the_same() -> None:
    rows = example()
    expected, _ = computed(rows)
    assert float(directional_contrastive_loss(**rows)) == expected


def test_another_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="neither overlap nor selected"):
        directional_contrastive_loss(**example(), normalize="all")


class LargestTensor(TorchDispatchMode):
    """The most elements that an operation's result has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_the_largest_tensor_is_set_by_the_chunk() -> None:
    chunk, dim = 2**12, 4
    for n, m in ((300, 400), (300, 1500)):
        rows = example(n=n, m=m, dim=dim)
        with LargestTensor() as largest:
            computed(rows, directional=False, positive_filter=False, chunk=chunk)
        assert largest.elements <= max(chunk, n * dim)  # n · m is 29 and 110 times the chunk


def test_rows_that_no_mask_keeps_are_never_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    from semiseg.losses import directional

    scored = []
    over_negatives = directional._over_negatives

    def counted(scaled: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        scored.append(len(scaled))
        return over_negatives(scaled, *arguments)

    monkeypatch.setattr(directional, "_over_negatives", counted)
    rows = example(n=200, m=40)
    computed(rows)
    assert sum(scored) == len(selection(rows, True, True)) < 100


class Waits(TorchDispatchMode):
    """The operations whose result's shape or value the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2"):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def test_in_fixed_shapes_nothing_waits_for_the_device() -> None:
    for select_first, waited in ((False, set()), (True, {"nonzero"})):
        rows = example()
        rows["anchors"].requires_grad_()
        for options in COMBINATIONS:
            with Waits() as waits:
                directional_contrastive_loss(**rows, **options, select_first=select_first).backward()
            assert waits.found == waited
