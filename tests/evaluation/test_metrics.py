import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semiseg.evaluation.metrics import (
    FIGURES,
    Prediction,
    boundary_confusion,
    boundary_iou,
    calibration,
    calibration_error,
    confusion_matrix,
    iou,
    mean_iou,
    near_boundary,
    true_negatives,
)


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
    # A meta tensor has no values, so an operation that waits for one fails.
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


# --- boundary IoU and calibration ---------------------------------------------------------------------------


def drawn(classes: int, height: int, width: int, seed: int) -> Prediction:
    """Draw a prediction and a mask of patches of 4 x 4 pixels, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-height // 4), -(-width // 4)

    def patches(values: Tensor) -> Tensor:
        return values.repeat_interleave(4, -2).repeat_interleave(4, -1)[..., :height, :width]

    probabilities = patches(torch.randn(classes, rows, columns, generator=generator).mul(2).softmax(0))
    mask = torch.randint(0, classes, (rows, columns), generator=generator, dtype=torch.uint8)
    mask[torch.rand(rows, columns, generator=generator) < 0.2] = 255
    return Prediction(probabilities, probabilities.argmax(0), patches(mask))


def is_near_boundary(labels: Tensor, row: int, column: int, distance: int) -> bool:
    height, width = labels.shape
    for y in range(row - distance, row + distance + 1):
        for x in range(column - distance, column + distance + 1):
            if not (0 <= y < height and 0 <= x < width) or labels[y, x] != labels[row, column]:
                return True
    return False


@pytest.mark.parametrize(("height", "width"), [(13, 21), (30, 9), (3, 3)])
@pytest.mark.parametrize("distance", [1, 2, 5])
def test_pixels_near_a_boundary_are_found_one_by_one(height: int, width: int, distance: int) -> None:
    labels = drawn(3, height, width, seed=distance).labels
    found = near_boundary(labels, distance)
    expected = [[is_near_boundary(labels, y, x, distance) for x in range(width)] for y in range(height)]
    assert found.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_boundary_iou_equals_a_loop_over_classes_and_pixels(seed: int) -> None:
    classes, height, width = 4, 60, 80  # a diagonal of 100 pixels: boundaries are 2 pixels wide
    images = [drawn(classes, height, width, seed), drawn(classes, height, width, seed + 100)]
    values = []
    for label in range(classes):
        both = either = 0
        for _, labels, mask in images:
            for y in range(height):
                for x in range(width):
                    if mask[y, x] == 255:
                        continue
                    predicted = labels[y, x] == label and is_near_boundary(labels, y, x, 2)
                    true = mask[y, x] == label and is_near_boundary(mask, y, x, 2)
                    both += bool(predicted and true)
                    either += bool(predicted or true)
        if either:
            values.append(both / either)
    counts = sum(boundary_confusion(each) for each in images)
    assert boundary_iou(counts).item() == pytest.approx(sum(values) / len(values))


def test_a_perfect_boundary_and_one_that_is_elsewhere() -> None:
    mask = torch.zeros(50, 50, dtype=torch.uint8)
    mask[:, 25:] = 1
    other = mask.roll(8, 1)
    for labels, expected in ((mask, 1.0), (other, None)):
        probabilities = torch.nn.functional.one_hot(labels.long(), 2).permute(2, 0, 1).float()
        value = boundary_iou(boundary_confusion(Prediction(probabilities, labels.long(), mask))).item()
        if expected is None:
            assert 0 < value < iou(confusion_matrix(labels, mask, 2)).mean()
        else:
            assert value == expected


def test_the_calibration_error_by_hand() -> None:
    # Two bins: 3 pixels at confidence 0.9, of which 2 are right, and 1 at 0.59 that is wrong; one is ignored.
    confidence = torch.tensor([[0.9, 0.9, 0.9, 0.59, 0.99]])
    probabilities = torch.stack((confidence, 1 - confidence))
    mask = torch.tensor([[0, 0, 1, 1, 255]], dtype=torch.uint8)
    counts = calibration(Prediction(probabilities, probabilities.argmax(0), mask))
    assert counts[0].tolist() == [0] * 8 + [1] + [0] * 4 + [3, 0]
    assert calibration_error(counts).item() == pytest.approx((3 * abs(2 / 3 - 0.9) + 0.59) / 4, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_equals_a_loop(seed: int) -> None:
    images = [drawn(5, 24, 31, seed), drawn(5, 12, 8, seed + 100)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probabilities, labels, mask in images:
        for confidence, label, truth in zip(
            probabilities.max(0).values.flatten().tolist(),
            labels.flatten().tolist(),
            mask.flatten().tolist(),
            strict=True,
        ):
            if truth != 255:
                bins.setdefault(math.ceil(15 * confidence), []).append((confidence, label == truth))
    total = sum(map(len, bins.values()))
    expected = sum(abs(sum(right - sure for sure, right in each)) / total for each in bins.values())
    counts = sum(calibration(each) for each in images)
    assert calibration_error(counts).item() == pytest.approx(expected, abs=1e-6)


def test_figures_have_no_value_where_nothing_is_scored() -> None:
    probabilities, labels, mask = drawn(3, 10, 10, 0)
    for figure in FIGURES.values():
        assert math.isnan(figure.value(figure.counts(Prediction(probabilities, labels, mask.fill_(255)))))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_never_read_a_value_on_the_host(name: str) -> None:
    image = Prediction(
        torch.empty(3, 20, 30, device="meta"),
        torch.empty(20, 30, dtype=torch.int64, device="meta"),
        torch.empty(20, 30, dtype=torch.uint8, device="meta"),
    )
    assert FIGURES[name].counts(image).device.type == "meta"
