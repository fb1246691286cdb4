"""Scoring against plain loops over images, windows and pixels."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.evaluation import score
from semiseg.evaluation.metrics import Prediction, confusion_matrix, true_negatives
from semiseg.evaluation.score import OWN_SIZE, Scoring, predict, window_starts
from semiseg.models.build import build
from semiseg.models.network import Backbone, Maps, SegmentationNetwork
from tests import miniature
from tests.tiny import tiny_network

CPU = torch.device("cpu")
SCORING = Scoring(3, CPU, "fp32")


class Eye(Backbone):
    """A backbone whose map is the normalised image."""

    def forward(self, images: Tensor) -> Maps:
        return (images,)


class Only(nn.Module):
    """A decoder whose features are the only map."""

    def forward(self, maps: Maps) -> Tensor:
        (features,) = maps
        return features


def brightest_channel() -> SegmentationNetwork:
    """Return a network of three classes that predicts the brightest channel at each pixel."""
    classifier = nn.Conv2d(3, 3, 1)
    network = SegmentationNetwork(
        Eye(), Only(), classifier, num_classes=3, feature_channels=3, feature_stride=1
    )
    with torch.no_grad():
        classifier.weight.copy_(torch.diag(network.std.flatten()).view(3, 3, 1, 1))
        classifier.bias.copy_(network.mean.flatten())
    return network


def constant(guess: int) -> SegmentationNetwork:
    network = brightest_channel()
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.eye(3)[guess])
    return network


def image_of(ids: Tensor) -> Tensor:
    """Return an image that shows class ids (H, W) as its brightest channel."""
    return (nn.functional.one_hot(ids, 3).permute(2, 0, 1) * 200).to(torch.uint8)


def photographs(*sizes: tuple[int, int]) -> list[score.Image]:
    drawn = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        drawn.append((str(number), image, torch.randint(0, 3, size, generator=generator, dtype=torch.uint8)))
    return drawn


def test_scoring_compiles_nothing_and_training_still_does() -> None:
    compiled: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(module)
        return module.forward

    network = tiny_network(3).train()
    network.decoder.compile(backend=backend)
    SCORING.count({"student": network}, photographs((16, 16), (24, 16), (32, 24)))
    assert not compiled
    network(torch.rand(2, 3, 16, 16))
    assert compiled


def test_a_constant_network_on_three_sizes_by_hand():
    black = torch.zeros(3, 2, 3, dtype=torch.uint8)
    images = [
        ("a", black, torch.tensor([[0, 0, 1], [1, 1, 255]], dtype=torch.uint8)),
        ("b", torch.zeros(3, 1, 4, dtype=torch.uint8), torch.tensor([[2, 2, 1, 255]], dtype=torch.uint8)),
        ("c", torch.zeros(3, 3, 1, dtype=torch.uint8), torch.tensor([[255], [255], [0]], dtype=torch.uint8)),
    ]
    matrices = SCORING.count({"student": constant(1), "teacher": constant(2)}, images)
    assert matrices["student"].tolist() == [[0, 3, 0], [0, 4, 0], [0, 2, 0]]
    assert matrices["teacher"].tolist() == [[0, 0, 3], [0, 0, 4], [0, 0, 2]]
    student = score.score(matrices["student"], ["sky", "road", "car"])
    assert student.iou == {"sky": 0.0, "road": 4 / 9, "car": 0.0}
    assert student.miou == pytest.approx(4 / 27)


def test_a_class_in_neither_has_no_iou():
    figures = score.score(torch.tensor([[2, 0, 0], [2, 4, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert figures.iou == {"a": 0.5, "b": 4 / 6, "c": None}
    assert figures.miou == pytest.approx((0.5 + 4 / 6) / 2)


def test_nothing_counted_is_an_error():
    with pytest.raises(UserError, match="masks"):
        score.score(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])


def test_every_pixel_is_scored_at_its_own_place():
    ids = torch.randint(0, 3, (37, 23), generator=torch.Generator().manual_seed(0))
    images = [("right", image_of(ids), ids.to(torch.uint8))]
    matrix = SCORING.count({"student": brightest_channel()}, images)["student"]
    assert matrix.tolist() == torch.diag(ids.flatten().bincount(minlength=3)).tolist()


def test_every_image_is_shown_with_what_each_network_makes_of_it():
    images = photographs((5, 8), (5, 8), (8, 5))
    shown = {}

    def seen(network: str, identifier: str, prediction: Prediction) -> None:
        assert torch.equal(prediction.labels, prediction.probabilities.argmax(0))
        shown[network, identifier] = confusion_matrix(prediction.labels, prediction.mask, 3)

    networks = {"student": brightest_channel(), "teacher": constant(2)}
    totals = SCORING.count(networks, images, seen)
    assert set(shown) == {(network, name) for network in networks for name, _, _ in images}
    for name, image, mask in images:
        alone = SCORING.count(networks, [(name, image, mask)])
        for network in networks:
            assert torch.equal(shown[network, name], alone[network])
    for network, total in totals.items():
        assert torch.equal(total, sum(each for (of, _), each in shown.items() if of == network))


def test_neighbours_of_one_size_are_scored_together_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(score, "BATCH_PIXELS", 2 * 5 * 8)
    images = photographs((5, 8), (5, 8), (5, 8), (8, 5), (5, 8), (40, 40), (40, 40))
    network, batches = brightest_channel(), []
    network.backbone.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    together = SCORING.count({"student": network}, images)["student"]
    assert batches == [2, 1, 1, 1, 1, 1]
    alone = [SCORING.count({"student": network}, [each])["student"] for each in images]
    assert together.tolist() == sum(alone).tolist()
    assert together.sum() == sum(mask.numel() for _, _, mask in images)
    batches.clear()
    SCORING.count({"student": network}, images, lambda name, identifier, prediction: None)
    assert batches == [1] * 7


def test_a_mask_of_another_size_is_refused_by_name():
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    images = [("street_7", image, torch.zeros(6, 4, dtype=torch.uint8))]
    with pytest.raises(UserError, match=r"^street_7: .*4x6.*6x4"):
        SCORING.count({"student": constant(0)}, images)


@pytest.fixture(scope="module")
def small() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build(Network("deeplabv3plus", "resnet18", "none", 16, 16), 3)


def test_evaluation_leaves_the_network_as_it_was(small, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    small.train()
    small.backbone.bn1.eval()  # a frozen layer stays frozen, the others go back to training
    modes = [module.training for module in small.modules()]
    before = {name: value.clone() for name, value in small.state_dict().items()}
    images = photographs((33, 40), (33, 40))
    first = SCORING.count({"student": small}, images)["student"]
    again = SCORING.count({"student": small}, images)["student"]
    assert torch.equal(first, again)  # no dropout, no batch statistics
    assert [module.training for module in small.modules()] == modes
    assert torch.backends.cudnn.benchmark
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name]), name
    first += 1  # a tensor like any other
    small(torch.rand(2, 3, 32, 32)).sum().backward()
    assert small.backbone.conv1.weight.grad is not None


def test_modes_are_restored_when_an_image_fails(small):
    small.train()
    broken = itertools.chain(photographs((16, 16)), (1 / 0 for _ in range(1)))
    with pytest.raises(ZeroDivisionError):
        SCORING.count({"student": small}, broken)
    assert all(module.training for module in small.modules())
    assert torch.is_grad_enabled()


def test_precision_reaches_the_network(small):
    seen = []
    hook = small.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images = photographs((48, 40))
    try:
        matrices = {
            precision: Scoring(3, CPU, precision).count({"student": small}, images)["student"]
            for precision in ("fp32", "bf16")
        }
    finally:
        hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert matrices["bf16"].sum() == matrices["fp32"].sum() == 48 * 40
    assert torch.equal(matrices["bf16"].sum(1), matrices["fp32"].sum(1))


def test_the_images_are_read_once_for_all_networks():
    read = []

    def stream():
        for each in photographs((4, 4), (4, 5)):
            read.append(each[0])
            yield each

    SCORING.count({str(number): constant(number) for number in range(3)}, stream())
    assert read == ["0", "1"]


# --- as the protocol says -----------------------------------------------------------------------------------


def starts(length: int, window: int, stride: int) -> list[int]:
    found, start = [], 0
    while start + window < length:
        found.append(start)
        start += stride
    return [*found, max(0, length - window)]


@pytest.mark.parametrize("length", [1, 5, 8, 9, 12, 16, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_windows_cover_a_side_and_end_at_its_edge(length: int, stride: int) -> None:
    found = window_starts(length, 8, stride)
    assert found == starts(length, 8, stride)
    covered = {place for start in found for place in range(start, min(start + 8, length))}
    assert covered == set(range(length))


def windowed(network: SegmentationNetwork, image: Tensor, window: int, stride: int) -> Tensor:
    """Return the mean probability over the windows that see a pixel, (C, H, W), window by window."""
    _, height, width = image.shape
    total, seen = torch.zeros(3, height, width), torch.zeros(height, width)
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            part = image[:, top : top + window, left : left + window]
            probability = network(part[None].float() / 255)[0].softmax(0)
            for y, x in itertools.product(range(part.shape[1]), range(part.shape[2])):
                total[:, top + y, left + x] += probability[:, y, x]
                seen[top + y, left + x] += 1
    return total / seen


@pytest.mark.parametrize("size", [(20, 33), (16, 16), (9, 40), (5, 7)])
@pytest.mark.parametrize("share", [0.25, 2 / 3, 1.0])
def test_a_sliding_window_averages_the_windows_that_see_a_pixel(
    small: SegmentationNetwork, size: tuple[int, int], share: float
) -> None:
    small.eval()
    images = torch.stack([image for _, image, _ in photographs(size, size)])
    with torch.no_grad():
        found = predict(small, images, replace(OWN_SIZE, window=16, stride=share))
        expected = torch.stack([windowed(small, each, 16, int(16 * share)) for each in images])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize(
    ("size", "long_side", "smaller"),
    [((40, 30), 20, (20, 15)), ((30, 41), 20, (15, 20)), ((10, 10), 25, (25, 25)), ((1, 100), 10, (1, 10))],
)
def test_a_long_side_resizes_the_image_and_brings_the_scores_back(
    size: tuple[int, int], long_side: int, smaller: tuple[int, int]
) -> None:
    network, shapes = brightest_channel(), []
    network.backbone.register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
    )
    ((_, image, _),) = photographs(size)
    with torch.no_grad():
        found = predict(network, image[None], replace(OWN_SIZE, long_side=long_side))
    assert shapes == [(1, 3, *smaller)]
    resized = interpolate(image[None].float(), smaller, mode="bilinear", antialias=True) / 255
    expected = interpolate(resized, size, mode="bilinear").softmax(1)  # the network's logits are its image
    torch.testing.assert_close(found, expected, rtol=0, atol=1 / 255)


def test_windows_slide_over_the_resized_image() -> None:
    network = brightest_channel()
    ((_, image, _),) = photographs((30, 44))
    with torch.no_grad():
        found = predict(network, image[None], replace(OWN_SIZE, long_side=22, window=8, stride=0.5))
        resized = interpolate(image[None].float(), (15, 22), mode="bilinear", antialias=True).round().byte()
        expected = interpolate(windowed(network, resized[0], 8, 4)[None], (30, 44), mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255)


@pytest.mark.parametrize("fields", [{}, {"long_side": 20}, {"window": 16, "stride": 0.5}], ids=str)
def test_a_flip_averages_with_the_mirrored_image(small: SegmentationNetwork, fields: dict[str, Any]) -> None:
    small.eval()
    plain, flipped = replace(OWN_SIZE, **fields), replace(OWN_SIZE, flip=True, **fields)
    images = torch.stack([image for _, image, _ in photographs((20, 33), (20, 33))])
    with torch.no_grad():
        own, mirrored = predict(small, images, plain), predict(small, images.flip(3), plain)
        found = predict(small, images, flipped)
        torch.testing.assert_close(found, (own + mirrored.flip(3)) / 2)
        torch.testing.assert_close(predict(small, images.flip(3), flipped), found.flip(3))
    assert (found - own).abs().max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"long_side": 24},
        {"window": 16, "stride": 0.5},
        {"long_side": 40, "window": 16, "flip": True, "stride": 0.75},
    ],
    ids=str,
)
def test_pixels_are_counted_at_the_masks_own_size(small: SegmentationNetwork, fields: dict[str, Any]) -> None:
    images, way = photographs((20, 33), (20, 33), (33, 20)), replace(OWN_SIZE, **fields)
    matrix = Scoring(3, CPU, "fp32", way).count({"only": small}, images)["only"]
    small.eval()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for _, image, mask in images:
        with torch.no_grad():
            predicted = predict(small, image[None], way).argmax(1)[0]
        for own, other in zip(mask.flatten().tolist(), predicted.flatten().tolist(), strict=True):
            expected[own, other] += 1
    assert matrix.tolist() == expected.tolist()


def test_a_run_is_scored_as_its_protocol_says(mini_project) -> None:
    evaluation = replace(OWN_SIZE, long_side=32, window=16, stride=0.5)
    config = miniature.config(evaluation=evaluation, precision="bf16")
    assert Scoring.of(config, CPU) == Scoring(3, CPU, "bf16", evaluation)


def test_the_figures_of_a_matrix_are_those_of_the_metrics() -> None:
    matrix = torch.tensor([[3, 1, 0], [2, 4, 1], [0, 0, 5]])
    assert SCORING.figures(matrix) == {
        "miou": pytest.approx((3 / 6 + 4 / 8 + 5 / 6) / 3),
        "true_negatives": pytest.approx(float(true_negatives(matrix))),
    }
