import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semiseg.evaluation.metrics import confusion_matrix, iou, mean_iou, true_negatives


def counted_one_by_one(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for guess, truth in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != ignore_index:
            matrix[truth, guess] += 1
    return matrix


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 25),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([255, -1, 0]),
    st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    st.integers(0, 2**31),
)
def test_confusion_matrix_equals_a_loop(num_classes, shape, ignore_index, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, num_classes, shape, generator=generator)
    target = torch.randint(0, num_classes, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.3] = ignore_index
    expected = counted_one_by_one(prediction, target, num_classes, ignore_index)
    if ignore_index >= 0:
        target = target.to(dtype)
    matrix = confusion_matrix(prediction.to(dtype), target, num_classes, ignore_index)
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, expected)


def test_rows_are_the_target():
    matrix = confusion_matrix(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 0, 255]]), 3)
    assert matrix.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]


def test_counting_never_reads_a_value_on_the_host():
    # A meta tensor has no values: whatever would wait for one fails.
    pixels = torch.zeros(2, 5, 7, dtype=torch.int64, device="meta")
    assert confusion_matrix(pixels, pixels, 4).shape == (4, 4)
    with pytest.raises((NotImplementedError, RuntimeError)):
        pixels.flatten().bincount(minlength=16)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="integers"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), 2)


@pytest.mark.parametrize("prediction", [0, 1, 2])
def test_a_target_that_no_class_has_is_an_error(prediction):
    with pytest.raises(RuntimeError, match="out of bounds"):
        confusion_matrix(torch.tensor([prediction]), torch.tensor([3]), 3)


def test_iou_by_hand():
    # Class 0: 3 of (4 true + 5 predicted - 3); 1: 1 of (3 + 2 - 1); 2 is only predicted, 3 is in neither.
    matrix = torch.tensor([[3, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    matrix[0, 2] = 1  # class 0 now has 5 true pixels
    values = iou(matrix)
    assert values.dtype == torch.float64
    assert values[:3].tolist() == [3 / 7, 1 / 4, 0.0]
    assert math.isnan(values[3])
    assert float(mean_iou(matrix)) == pytest.approx((3 / 7 + 1 / 4 + 0) / 3, abs=1e-15)


def test_a_class_that_is_never_predicted_counts_as_zero():
    assert iou(torch.tensor([[4, 0], [6, 0]])).tolist() == [0.4, 0.0]


def test_everything_ignored_has_no_iou():
    target = torch.full((4, 4), 255)
    matrix = confusion_matrix(torch.zeros_like(target), target, 3)
    assert not matrix.any()
    assert iou(matrix).isnan().all()
    assert math.isnan(mean_iou(matrix))


def test_large_counts_keep_every_pixel():
    count = 2**53  # Cityscapes' val list has 10^9 pixels, far below
    assert iou(torch.tensor([[count, 0], [0, count]])).tolist() == [1.0, 1.0]
    assert mean_iou(torch.tensor([[2**31, 2**31], [0, 2**31]])).item() == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_true_negatives_are_counted_over_all_pairs(pixels):
    prediction, target = (torch.tensor(each) for each in zip(*pixels, strict=True))
    negatives = [
        own[1] != other[1] for own in pixels for other in pixels if own[0] != other[0]
    ]  # pairs that differ in prediction
    share = true_negatives(confusion_matrix(prediction, target, 4))
    if negatives:
        assert share.item() == pytest.approx(sum(negatives) / len(negatives))
    else:
        assert math.isnan(share)


def test_true_negatives_of_a_billion_pixels():
    matrix = torch.tensor([[10**9, 10], [0, 10**8]])
    # False negatives: the ten pixels with the first class's others.
    assert true_negatives(matrix).item() == pytest.approx(1 - 10 * 10**9 / (10**9 * (10**8 + 10)), rel=1e-9)
