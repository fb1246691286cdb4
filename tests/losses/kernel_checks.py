"""The kernel of the directional contrast against the equation as printed, on the GPU, or on the CPU where
TRITON_INTERPRET=1 is set. Triton reads that when it is first imported: test_directional_kernel.py runs this
file in a process of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from semiseg.losses import directional, directional_contrastive_loss, directional_kernel
from tests.losses.literal_directional import (
    COMBINATIONS,
    Rows,
    as_type,
    assert_close,
    example,
    reference,
    selection,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 1e-6 if INTERPRETED else 5e-6  # three TF32 products are not quite a float32 one
ALL = {"directional": False, "positive_filter": False}
MASKS = ({}, ALL, ALL | {"negative_sampling": False})  # cases that differ for the kernel


@pytest.fixture(autouse=True)
def by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(directional, "_over_negatives", lambda anchors: directional_kernel)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Let waiting for the GPU raise, if there is one."""
    if INTERPRETED:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def computed(rows: Rows, **options: Any) -> tuple[float, Tensor]:
    on_device = {name: each.to(DEVICE) for name, each in rows.items()}
    anchors = on_device["anchors"].detach().clone().requires_grad_()
    options = {name: each.to(DEVICE) if isinstance(each, Tensor) else each for name, each in options.items()}
    with nothing_waits():
        loss = directional_contrastive_loss(**(on_device | {"anchors": anchors}), **options)
        (gradient,) = torch.autograd.grad(loss, anchors)
    return float(loss.detach()), gradient.cpu()


def single(**sizes: int) -> Rows:
    return as_type(example(**sizes), torch.float32)


@pytest.mark.parametrize("options", COMBINATIONS)
def test_every_combination_of_switches_is_the_printed_equation(options: dict[str, Any]) -> None:
    rows = single(m=37)
    assert_close(computed(rows, **options), reference(rows, **options), TOLERANCE)
    rows = example(m=37)
    assert_close(computed(rows, **options), reference(rows, **options), 1e-12)


@pytest.mark.parametrize(
    ("n", "m", "dim"), [(2, 1, 3), (64, 32, 32), (65, 33, 31), (20, 40, 130), (9, 30, 300)]
)
def test_sizes_beside_those_of_the_blocks(n: int, m: int, dim: int) -> None:
    rows = single(n=n, m=m, dim=dim, seed=4)
    assert_close(computed(rows, **ALL), reference(rows, **ALL), TOLERANCE)
    assert_close(computed(rows), reference(rows), TOLERANCE)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.07, 0.05])
def test_temperatures(temperature: float) -> None:
    rows = single(m=40, dim=40)
    rows["negatives"][0], rows["negatives"][1] = rows["anchors"][3], -rows["anchors"][3]
    for options in MASKS:
        found = computed(rows, temperature=temperature, **options)
        assert_close(found, reference(rows, temperature=temperature, **options), TOLERANCE)


@pytest.mark.parametrize("temperature", [0.04, 0.01, 0.001, 1e-5])
def test_low_temperatures_are_summed_in_float64(temperature: float) -> None:
    rows = single(m=40, dim=40)
    rows["negatives"][0], rows["negatives"][1] = rows["anchors"][3], -rows["anchors"][3]
    for options in MASKS:
        found = computed(rows, temperature=temperature, **options)
        assert_close(found, reference(rows, temperature=temperature, **options), 1e-6)


def test_scores_that_overflow_a_naive_exp() -> None:
    """Rows of eighths and τ = 1/16, so that float32 holds the scores, up to some hundreds, exactly."""
    rows = single(m=70)
    for name, scale in (("anchors", 32), ("positives", 1), ("negatives", 1)):
        rows[name] = (rows[name] * 8).round() / 8 * scale
    scores = rows["anchors"] @ rows["negatives"].T * 16
    assert scores.max() > 200
    assert scores.min() < -200
    for options in MASKS:
        found = computed(rows, temperature=1 / 16, **options)
        assert_close(found, reference(rows, temperature=1 / 16, **options), TOLERANCE)


def test_the_maximum_may_stand_in_any_block_of_negatives() -> None:
    rows = single(n=8, m=100)
    for place in (0, 40, 99):
        moved = rows | {"negatives": rows["negatives"].clone(), "negative_labels": torch.full((100,), 1)}
        moved["negatives"][place] = rows["anchors"][1] * 20
        moved["anchor_labels"] = torch.zeros(8, dtype=torch.int64)
        assert_close(computed(moved, **ALL), reference(moved, **ALL), 1e-5)  # scores of 200 in float32


@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_no_negatives(mean: str) -> None:
    none, same = single(m=0), single(m=40)
    same["anchor_labels"] = torch.zeros_like(same["anchor_labels"])
    same["negative_labels"] = torch.zeros_like(same["negative_labels"])
    invalid = {"negative_valid": torch.zeros(40, dtype=torch.bool), "negative_sampling": False}
    for rows, options in ((none, {}), (same, {}), (same, invalid)):
        loss, gradient = computed(rows, normalize=mean, **options)
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("mean", ["overlap", "selected"])
def test_nothing_selected_is_zero_with_a_gradient_of_zero(mean: str) -> None:
    rows = single()
    for changed in (
        rows | {"positive_confidence": torch.full_like(rows["positive_confidence"], 0.75)},
        single(n=0),
    ):
        loss, gradient = computed(changed, normalize=mean)
        assert loss == 0
        assert not gradient.any()


def test_rows_that_no_mask_keeps_are_never_read() -> None:
    rows = single(n=150, m=40)
    for options in MASKS:
        kept = torch.zeros(150, dtype=torch.bool)
        kept[selection(rows, options.get("directional", True), options.get("positive_filter", True))] = True
        poisoned = rows | {
            name: torch.where(kept[:, None], rows[name], torch.nan) for name in ("anchors", "positives")
        }
        loss, gradient = computed(poisoned, **options)
        expected_loss, expected = computed(rows, **options)
        assert loss == expected_loss
        assert torch.equal(gradient, expected)
        assert not gradient[~kept].any()
        assert gradient[kept].any(dim=1).all()


def test_what_is_not_a_number_in_a_selected_row_shows() -> None:
    rows = single()
    rows["anchors"][3] = torch.nan
    assert torch.tensor(computed(rows, **ALL)[0]).isnan()


def test_rows_outside_the_overlap_and_places_without_a_negative_do_not_count() -> None:
    rows = single(n=80, m=50)
    valid, negative_valid = torch.arange(80) % 3 != 0, torch.arange(50) % 4 != 1
    rows["negatives"][~negative_valid] = torch.nan
    inside = {name: each[valid] for name, each in rows.items() if not name.startswith("negative")}
    filled = {name: each[negative_valid] for name, each in rows.items() if name.startswith("negative")}
    for options in MASKS:
        expected_loss, expected = reference(inside | filled, **options)
        loss, gradient = computed(rows, **options, valid=valid, negative_valid=negative_valid)
        assert_close((loss, gradient[valid]), (expected_loss, expected), TOLERANCE)
        assert not gradient[~valid].any()


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_rows_of_half_precision_are_summed_in_float32(dtype: torch.dtype, digits: int) -> None:
    rows = as_type(example(dim=40, m=70), dtype)
    loss, gradient = computed(rows, **ALL)
    expected_loss, expected = reference(rows, **ALL)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert gradient.dtype == dtype
    assert torch.allclose(gradient.double(), expected, rtol=2**-digits, atol=1e-7)  # one rounding


def test_rows_that_lie_apart_in_memory_and_small_labels() -> None:
    rows = single(n=40, m=60)
    apart = {name: torch.stack((each, torch.zeros_like(each)), dim=-1)[..., 0] for name, each in rows.items()}
    assert not any(each.is_contiguous() for each in apart.values())
    apart["anchor_labels"] = apart["anchor_labels"].int()
    loss, gradient = computed(apart)
    expected_loss, expected = computed(rows)
    assert loss == expected_loss
    assert torch.equal(gradient, expected)


def test_without_a_gradient_and_under_autocast_the_loss_is_the_same() -> None:
    rows = {name: each.to(DEVICE) for name, each in single(dim=200).items()}
    expected, _ = computed(rows)
    for context in (nullcontext(), torch.autocast(DEVICE, torch.bfloat16)):
        with context:
            assert float(directional_contrastive_loss(**rows)) == expected


if INTERPRETED:

    def test_programs_after_the_selected_rows_score_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import InterpreterBuilder

        products = []
        create_dot = InterpreterBuilder.create_dot

        def counted(*arguments: Any) -> Any:
            products.append(1)
            return create_dot(*arguments)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
        rows = single(n=640, m=40, dim=40)
        for selected in (0, 1, 64, 65):
            products.clear()
            computed(rows, valid=torch.randperm(640) < selected, **ALL)
            blocks = -(-selected // directional_kernel.ROWS) * 2  # of anchors, and two of negatives
            assert len(products) == blocks * (2 + 3)  # two steps of the scores, twice, and the mean
