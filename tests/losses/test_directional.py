import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.losses import directional_blocks, directional_contrastive_loss
from tests.losses.literal_directional import (
    COMBINATIONS,
    Rows,
    as_type,
    assert_close,
    example,
    reference,
    selection,
)


@pytest.fixture(params=["selected alone", "all at once"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's form and a GPU's; both run on the CPU."""
    monkeypatch.setattr(directional_blocks, "_all_at_once", lambda pairs: request.param == "all at once")
    return str(request.param)


pytestmark = pytest.mark.usefixtures("form")


def set_blocks(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(directional_blocks, "SIDE", side)
    monkeypatch.setattr(directional_blocks, "ON_A_GPU", side**2)


def computed(rows: Rows, **options: Any) -> tuple[float, Tensor]:
    rows = {**rows, "anchors": rows["anchors"].detach().clone().requires_grad_()}
    loss = directional_contrastive_loss(**rows, **options)
    (gradient,) = torch.autograd.grad(loss, rows["anchors"])
    return float(loss.detach()), gradient


@pytest.mark.parametrize("options", COMBINATIONS)
def test_every_combination_of_switches_is_the_printed_equation(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = example()
    assert_close(computed(rows, **options), reference(rows, **options), 1e-12)
    single = as_type(rows, torch.float32)
    assert_close(computed(single, **options), reference(single, **options), 1e-6)
    for side in (1, 3):
        set_blocks(monkeypatch, side)
        assert_close(computed(rows, **options), reference(rows, **options), 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01, 0.001, 1e-5])
def test_scores_that_overflow_a_naive_exp(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 4)
    rows = example()
    rows["negatives"][0], rows["negatives"][1] = rows["anchors"][3], -rows["anchors"][3]
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-6)):
        typed = as_type(rows, dtype)
        for options in COMBINATIONS:
            found = computed(typed, temperature=temperature, **options)
            assert_close(found, reference(typed, temperature=temperature, **options), tolerance)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75, 0.9])
def test_the_threshold(threshold: float) -> None:
    rows = example(seed=1)
    assert_close(computed(rows, threshold=threshold), reference(rows, threshold=threshold), 1e-12)


def test_at_the_scale_of_training_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 32)
    rows = as_type(example(n=160, m=300, dim=128, seed=2), torch.float32)
    assert_close(computed(rows), reference(rows), 1e-6)


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


@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_no_negatives(mean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 3)
    none = example(m=0)
    same = example()
    same["negative_labels"] = torch.zeros_like(same["negative_labels"])
    same["anchor_labels"] = torch.zeros_like(same["anchor_labels"])
    for rows in (none, same):
        loss, gradient = computed(rows, normalize=mean)
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_nothing_selected_is_zero_with_a_gradient_of_zero(mean: str) -> None:
    rows = example()
    for changed in (
        rows | {"positive_confidence": torch.full_like(rows["positive_confidence"], 0.75)},
        rows | {"anchor_confidence": rows["positive_confidence"]},
        example(n=0),
    ):
        loss, gradient = computed(changed, normalize=mean)
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
        loss, gradient = computed(rows, **options, valid=valid, negative_valid=negative_valid)
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        assert torch.allclose(gradient[valid], expected, rtol=1e-12)
        assert not gradient[~valid].any()


def test_rows_that_no_mask_keeps_change_nothing() -> None:
    rows = example(n=150, m=40)
    for options in COMBINATIONS:
        kept = torch.zeros(150, dtype=torch.bool)
        kept[selection(rows, options["directional"], options["positive_filter"])] = True
        poisoned = rows | {
            name: torch.where(kept[:, None], rows[name], torch.nan) for name in ("anchors", "positives")
        }
        loss, gradient = computed(poisoned, **options)
        expected_loss, expected = computed(rows, **options)
        assert loss == expected_loss
        assert torch.equal(gradient, expected)
        assert not gradient[~kept].any()
        assert gradient[kept].any(dim=1).all()


@pytest.mark.parametrize("place", [0, 40, 99])
def test_the_maximum_may_stand_in_any_block_of_negatives(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 8)
    rows = as_type(example(n=8, m=100), torch.float32)
    rows |= {"anchor_labels": torch.zeros(8, dtype=torch.int64), "negative_labels": torch.ones(100).long()}
    rows["negatives"][place] = rows["anchors"][1] * 20
    options = {"directional": False, "positive_filter": False}
    assert_close(computed(rows, **options), reference(rows, **options), 1e-5)  # scores of 200 in float32


def test_rows_that_lie_apart_in_memory_and_small_labels() -> None:
    rows = as_type(example(n=40, m=60), torch.float32)
    apart = {name: torch.stack((each, torch.zeros_like(each)), dim=-1)[..., 0] for name, each in rows.items()}
    assert not any(each.is_contiguous() for each in apart.values())
    apart["anchor_labels"] = apart["anchor_labels"].int()
    assert_close(computed(apart), reference(rows), 1e-6)


def test_what_is_not_a_number_in_a_selected_row_shows() -> None:
    rows = example()
    rows["anchors"][3] = torch.nan
    assert math.isnan(computed(rows, directional=False, positive_filter=False)[0])


def test_without_a_gradient_the_loss_is_the_same() -> None:
    rows = example()
    expected, _ = computed(rows)
    assert float(directional_contrastive_loss(**rows)) == expected


def test_another_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="neither overlap nor selected"):
        directional_contrastive_loss(**example(), normalize="all")


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_the_largest_tensor_is_set_by_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    side, dim = 64, 4
    set_blocks(monkeypatch, side)
    for n, m in ((300, 400), (300, 1500)):
        rows = example(n=n, m=m, dim=dim)
        with LargestTensor() as largest:
            computed(rows, directional=False, positive_filter=False)
        assert largest.elements <= max(side**2, n * dim)  # n · m is 29 and 110 times the block


class Products(TorchDispatchMode):
    """Counts the elements of all results of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm:
            self.elements += result.numel()
        return result


def test_only_a_gpu_scores_rows_that_no_mask_keeps(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, 16)
    rows = example(n=200, m=40)
    with Products() as scores:
        computed(rows)
    selected = len(selection(rows, True, True))
    assert selected < 100
    scored = selected if form == "selected alone" else 200
    assert scores.elements == 2 * scored * 40  # forward and backward


def test_nothing_of_the_scores_is_kept_for_the_backward_pass() -> None:
    """A graph keeps its inputs and two numbers a row."""
    rows = as_type(example(n=300, m=700, dim=4), torch.float32)
    inputs = {each.data_ptr() for each in rows.values()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    rows["anchors"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        directional_contrastive_loss(**rows)
    own = [each for each in kept if each.data_ptr() not in inputs and each.is_floating_point()]
    assert own
    assert max(each.numel() for each in own) == 300
