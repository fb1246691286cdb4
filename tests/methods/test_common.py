import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Geometry
from semiseg.data.augment import Pixels
from semiseg.losses import cross_entropy, hard_cross_entropy
from semiseg.methods import common
from semiseg.methods.common import Colours, CutMix, HardExamples
from tests.methods.waits import Waits
from tests.tiny import tiny_network

SIDE = 64
UNIMATCH = CutMix(probability=1.0)
FRENCH = CutMix(probability=1.0, area=(0.5, 0.5), aspect=None)
CPS = CutMix(probability=1.0, area=(0.25, 0.5), aspect=None, boxes=3)


def boxes(cutmix: CutMix, count: int, side: int = SIDE) -> Tensor:
    torch.manual_seed(0)
    return common.cutmix_boxes(torch.zeros(count, 3, side, side), cutmix)


def sides(masks: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the height and width of one box in each mask, as shares of its sides."""
    return masks.any(dim=2).double().mean(dim=1).numpy(), masks.any(dim=1).double().mean(dim=1).numpy()


def farthest(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the largest distance of two samples' distribution functions (Kolmogorov-Smirnov)."""
    both = np.concatenate((one, other))
    ranks = [np.searchsorted(np.sort(each), both, side="right") / len(each) for each in (one, other)]
    return float(np.abs(ranks[0] - ranks[1]).max())


# --- pseudo-labels --------------------------------------------------------------------------------------


def test_counting_pseudo_labels_never_waits_for_the_device() -> None:
    truth = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with Waits() as waits:
        common.judged(truth, truth.long(), torch.ones(2, 4, 4), 3)
    assert not waits.found


def test_pseudo_labels_are_counted_by_true_class() -> None:
    truth = torch.tensor([[[0, 0, 1], [1, 1, IGNORE]]], dtype=torch.uint8)
    labels = torch.tensor([[[0, 1, 1], [1, 0, 1]]])
    weights = torch.tensor([[[1.0, 0.5, 0.25], [0.0, 1.0, 1.0]]])
    counts = {name: float(count) for name, count in common.judged(truth, labels, weights, 3).items()}
    assert counts == {
        "pixels_true_0": 2, "pixels_true_1": 3, "pixels_true_2": 0,
        "pixels_labelled_0": 1.5, "pixels_labelled_1": 1.25, "pixels_labelled_2": 0,
        "pixels_right_0": 1, "pixels_right_1": 0.25, "pixels_right_2": 0,
    }  # fmt: skip


def test_without_a_truth_nothing_is_counted() -> None:
    assert common.judged(None, torch.zeros(1, 2, 2), torch.ones(1, 2, 2), 3) == {}


# --- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, math.exp(-5)), (1000, math.exp(-1.25)), (1500, math.exp(-0.3125)), (2000, 1.0), (9000, 1.0)],
)
def test_the_ramp_up_is_a_gaussian_that_ends_at_one(step: int, expected: float) -> None:
    assert common.ramp_up(step, 2000) == pytest.approx(expected)
    assert common.ramp_up(step, 0) == 1


# --- views ----------------------------------------------------------------------------------------------


def test_the_weak_view_marks_its_padding() -> None:
    view = common.weak_view(Geometry(base_size=20, scale=(1.0, 1.0), crop=32))
    found = view(torch.full((3, 20, 20), 9, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert found["image"].shape == (3, 32, 32)
    assert found["mask"].dtype == torch.uint8
    assert (found["mask"] == IGNORE).sum() == 32**2 - 20**2
    assert not found["mask"][found["mask"] != IGNORE].any()
    assert torch.equal((found["image"] == 9).all(dim=0), found["mask"] == 0)


def test_each_image_of_a_strong_view_has_its_own_draws() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 8, 8).expand(400, -1, -1, -1)
    changed = common.strong_view(images, Colours())
    grey = (changed == changed[:, :1]).flatten(1).all(dim=1).double().mean()
    same = (changed == images).flatten(1).all(dim=1).double().mean()
    assert float(grey) == pytest.approx(0.2, abs=0.06)
    assert float(same) == pytest.approx(0.2 * 0.8 * 0.5, abs=0.04)
    assert 0 <= changed.min() <= changed.max() <= 1


@pytest.mark.parametrize("name", ["jitter_probability", "grey_probability", "blur_probability"])
def test_a_probability_of_zero_turns_a_change_off(name: str) -> None:
    off = Colours(jitter_probability=0, grey_probability=0, blur_probability=0)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(common.strong_view(images, off), images)
    assert not torch.equal(common.strong_view(images, dataclasses.replace(off, **{name: 1.0})), images)


# --- CutMix ---------------------------------------------------------------------------------------------


def redrawn_boxes(cutmix: CutMix, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw boxes literally as UniMatch: an area, then aspect and corner until the box lies inside."""
    rng, found = random.Random(0), []
    assert cutmix.aspect is not None
    for _ in range(count):
        area = rng.uniform(*cutmix.area)
        while True:
            aspect = rng.uniform(*cutmix.aspect)
            height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if rng.random() + height <= 1 and rng.random() + width <= 1:
                break
        found.append((height, width))
    return np.array(found)[:, 0], np.array(found)[:, 1]


@pytest.mark.parametrize(
    "cutmix", [UNIMATCH, CutMix(1.0, area=(0.3, 0.3)), CutMix(1.0, area=(0.1, 0.6), aspect=(0.5, 1.5))]
)
def test_area_and_aspect_of_boxes_with_a_range_of_aspects(cutmix: CutMix) -> None:
    height, width = sides(boxes(cutmix, 2000, side=128))
    tall, wide = redrawn_boxes(cutmix, 40_000)
    limit = 1.63 * math.sqrt(1 / 2000 + 1 / 40_000)  # samples of one law exceed it once in a hundred times
    assert farthest(height, np.round(128 * tall) / 128) < limit
    assert farthest(height / width, np.round(128 * tall) / np.round(128 * wide)) < limit
    assert (height * width).min() >= cutmix.area[0] - 0.01
    assert (height * width).max() <= cutmix.area[1] + 0.01
    assert (height * width).mean() == pytest.approx(sum(cutmix.area) / 2, abs=0.01)


def test_a_box_without_a_range_of_aspects_is_log_uniform_over_all_shapes() -> None:
    height, width = sides(boxes(FRENCH, 2000, side=128))
    assert np.abs(height * width - 0.5).max() < 0.01
    uniform = np.log(height) / math.log(0.5)  # the height is area^U
    assert farthest(uniform, np.linspace(0, 1, 40_000)) < 0.03
    assert uniform.min() < 0.01
    assert uniform.max() > 0.99


def toggled_boxes(cutmix: CutMix, count: int, side: int) -> NDArray[np.float64]:
    """Return the share pasted by several log-uniform boxes, each of which toggles its area."""
    rng, found = random.Random(0), []
    for _ in range(count):
        mask = np.zeros((side, side), dtype=bool)
        for _ in range(cutmix.boxes):
            area = rng.uniform(*cutmix.area)
            height = area ** rng.random()
            rows, columns = (round(side * each / math.sqrt(cutmix.boxes)) for each in (height, area / height))
            top, left = rng.randint(0, side - rows), rng.randint(0, side - columns)
            mask[top : top + rows, left : left + columns] ^= True
        found.append(mask.mean())
    return np.array(found)


def test_several_boxes_toggle_what_they_cover() -> None:
    pasted = boxes(CPS, 4000).double().mean(dim=(1, 2)).numpy()
    assert farthest(pasted, toggled_boxes(CPS, 4000, SIDE)) < 1.63 * math.sqrt(2 / 4000)


def test_a_box_lies_anywhere_it_fits() -> None:
    masks = boxes(CutMix(1.0, area=(0.25, 0.25), aspect=(0.999, 1.001)), 8000, side=8)
    first = masks.any(dim=2).int().argmax(dim=1)
    counts = torch.bincount(first, minlength=5)
    assert len(counts) == 5  # 4 of 8 pixels high: five places
    assert counts.min() > 1400
    assert counts.max() < 1800


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_an_image_is_mixed_with_the_probability(probability: float) -> None:
    mixed = boxes(dataclasses.replace(UNIMATCH, probability=probability), 2000).flatten(1).any(dim=1)
    assert float(mixed.double().mean()) == pytest.approx(probability, abs=0.04)


def test_the_next_image_is_pasted_with_labels_and_weights() -> None:
    values = torch.arange(3.0)
    pixels = Pixels(
        values.view(3, 1, 1, 1).expand(3, 3, 4, 4), values.view(3, 1, 1).expand(3, 4, 4).long(),
        values.view(3, 1, 1).expand(3, 4, 4),
    )  # fmt: skip
    places = torch.zeros(3, 4, 4, dtype=torch.bool)
    places[:, 1:3, 2:] = True
    mixed = common.cut_and_paste(pixels, places)
    others = common.cut_and_paste(pixels, places, pixels._replace(labels=pixels.labels + 10))
    for i in range(3):
        following = (i + 1) % 3
        for each in (mixed.images[i, 0], mixed.labels[i], mixed.weights[i]):
            assert (each[places[i]] == following).all()
            assert (each[~places[i]] == i).all()
        assert (others.labels[i][places[i]] == following + 10).all()
        assert (others.labels[i][~places[i]] == i).all()


# --- pseudo-labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_prediction_has_its_mode_and_leaves_the_networks(training: bool) -> None:
    torch.manual_seed(0)
    network, images = tiny_network(3).train(), torch.rand(2, 3, 16, 16)
    network.decoder.eval()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    logits = common.predict(network, images, training=training)
    assert not logits.requires_grad
    assert network.training
    assert not network.decoder.training
    moved = [name for name, value in network.backbone.state_dict().items() if (value != before[name]).any()]
    assert bool(moved) == training
    network.load_state_dict({f"backbone.{name}": value for name, value in before.items()}, strict=False)
    assert torch.equal(network.train(training)(images), logits)


def test_pseudo_labels_are_the_argmax_and_ignore_padding() -> None:
    logits = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 6, 6, dtype=torch.uint8)
    padding[:, 4:] = IGNORE
    images = torch.rand(2, 3, 6, 6)
    pixels = common.pseudo_labelled(images, padding, logits)
    assert pixels.images is images
    assert (pixels.labels[:, 4:] == IGNORE).all()
    assert not pixels.weights[:, 4:].any()
    assert torch.equal(pixels.labels[:, :4], logits.argmax(dim=1)[:, :4])
    assert torch.equal(pixels.weights[:, :4], logits.softmax(dim=1).amax(dim=1)[:, :4])


# --- passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (8, 4), (2, 6), (6, 4, 2), (3, 5)])
def test_batches_go_together_and_apart_again(sizes: tuple[int, ...]) -> None:
    batches = [torch.arange(size)[:, None] + 100 * place for place, size in enumerate(sizes)]
    joined = common.together(*batches)
    assert all(map(torch.equal, common.apart(joined, *sizes), batches))
    shares = math.gcd(*sizes)
    blocks = [
        common.together(*(batch.unflatten(0, (shares, -1))[rank] for batch in batches))
        for rank in range(shares)
    ]
    assert torch.equal(torch.cat(blocks), joined)  # the processes' joined rows are blocks of one process's


# --- the supervised loss --------------------------------------------------------------------------------


def test_the_supervised_loss_mines_hard_examples_if_it_is_told_to() -> None:
    logits = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(dim=1)
    assert common.supervised_loss(logits, labels, None) == cross_entropy(logits, labels)
    found = common.supervised_loss(logits, labels, HardExamples(pixels=9, threshold=0.5))
    assert found == hard_cross_entropy(logits, labels, pixels=9, threshold=0.5)


# --- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Colours, {"jitter_probability": 1.1}),
        (Colours, {"jitter": (0.5, 0.5, 0.5, 0.6)}),
        (Colours, {"jitter": (-0.5, 0.5, 0.5, 0.1)}),
        (Colours, {"blur_sigma": (2.0, 1.0)}),
        (Colours, {"blur_sigma": (0.0, 1.0)}),
        (CutMix, {"probability": -0.1}),
        (CutMix, {"area": (0.0, 0.5)}),
        (CutMix, {"area": (0.5, 0.4)}),
        (CutMix, {"boxes": 0}),
        (CutMix, {"aspect": (2.0, 0.5)}),
        (CutMix, {"aspect": (3.0, 4.0)}),
        (HardExamples, {"pixels": 0}),
        (HardExamples, {"threshold": 1.5}),
    ],
)
def test_a_number_out_of_range_is_refused(kind: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        kind(**{"pixels": 9, **changes} if kind is HardExamples else changes)
