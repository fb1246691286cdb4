import itertools

import pytest
import torch
from torch import Tensor, nn

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.evaluation import score
from semiseg.evaluation.metrics import confusion_matrix
from semiseg.evaluation.score import confusion
from semiseg.models.build import build
from semiseg.models.network import Backbone, Maps, SegmentationNetwork

CPU = torch.device("cpu")


class Eye(Backbone):
    """Sees the normalised image itself."""

    def forward(self, images: Tensor) -> Maps:
        return (images,)


class Only(nn.Module):
    """Takes the only map as features."""

    def forward(self, maps: Maps) -> Tensor:
        (features,) = maps
        return features


def brightest_channel() -> SegmentationNetwork:
    """Predicts the channel, as a class of three, that is brightest at each pixel."""
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
    """An image that shows class ids (H, W) as its brightest channel."""
    return (nn.functional.one_hot(ids, 3).permute(2, 0, 1) * 200).to(torch.uint8)


def photographs(*sizes: tuple[int, int]) -> list[score.Image]:
    drawn = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        drawn.append((str(number), image, torch.randint(0, 3, size, generator=generator, dtype=torch.uint8)))
    return drawn


def test_a_constant_network_on_three_sizes_by_hand():
    black = torch.zeros(3, 2, 3, dtype=torch.uint8)
    images = [
        ("a", black, torch.tensor([[0, 0, 1], [1, 1, 255]], dtype=torch.uint8)),
        ("b", torch.zeros(3, 1, 4, dtype=torch.uint8), torch.tensor([[2, 2, 1, 255]], dtype=torch.uint8)),
        ("c", torch.zeros(3, 3, 1, dtype=torch.uint8), torch.tensor([[255], [255], [0]], dtype=torch.uint8)),
    ]
    matrices = confusion({"student": constant(1), "teacher": constant(2)}, images, 3, CPU, "fp32")
    assert matrices["student"].tolist() == [[0, 3, 0], [0, 4, 0], [0, 2, 0]]
    assert matrices["teacher"].tolist() == [[0, 0, 3], [0, 0, 4], [0, 0, 2]]
    student = score(matrices["student"], ["sky", "road", "car"])
    assert student.iou == {"sky": 0.0, "road": 4 / 9, "car": 0.0}
    assert student.miou == pytest.approx(4 / 27)


def test_a_class_in_neither_has_no_iou():
    figures = score.score(torch.tensor([[2, 0, 0], [2, 4, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert figures.iou == {"a": 0.5, "b": 4 / 6, "c": None}
    assert figures.miou == pytest.approx((0.5 + 4 / 6) / 2)


def test_nothing_counted_is_an_error():
    with pytest.raises(UserError, match="nothing to score"):
        score.score(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])


def test_every_pixel_is_scored_at_its_own_place():
    ids = torch.randint(0, 3, (37, 23), generator=torch.Generator().manual_seed(0))
    images = [("right", image_of(ids), ids.to(torch.uint8))]
    matrix = confusion({"student": brightest_channel()}, images, 3, CPU, "fp32")["student"]
    assert matrix.tolist() == torch.diag(ids.flatten().bincount(minlength=3)).tolist()


def test_every_image_is_shown_with_what_each_network_makes_of_it():
    images = photographs((5, 8), (5, 8), (8, 5))
    shown = {}

    def seen(network, identifier, labels, mask):
        shown[network, identifier] = confusion_matrix(labels, mask, 3)

    networks = {"student": brightest_channel(), "teacher": constant(2)}
    totals = confusion(networks, images, 3, CPU, "fp32", seen)
    assert set(shown) == {(network, name) for network in networks for name, _, _ in images}
    for name, image, mask in images:
        alone = confusion(networks, [(name, image, mask)], 3, CPU, "fp32")
        for network in networks:
            assert torch.equal(shown[network, name], alone[network])
    for network, total in totals.items():
        assert torch.equal(total, sum(each for (of, _), each in shown.items() if of == network))


def test_batches_hold_neighbours_of_one_size_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(score, "BATCH_PIXELS", 2 * 5 * 8)
    images = photographs((5, 8), (5, 8), (5, 8), (8, 5), (5, 8), (40, 40), (40, 40))
    batches = [[name for name, _, _ in batch] for batch in score._batches(images)]
    assert batches == [["0", "1"], ["2"], ["3"], ["4"], ["5"], ["6"]]
    together = confusion({"student": brightest_channel()}, images, 3, CPU, "fp32")["student"]
    alone = [
        confusion({"student": brightest_channel()}, [each], 3, CPU, "fp32")["student"] for each in images
    ]
    assert together.tolist() == sum(alone).tolist()
    assert together.sum() == sum(mask.numel() for _, _, mask in images)


def test_a_mask_of_another_size_is_refused_by_name():
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    images = [("street_7", image, torch.zeros(6, 4, dtype=torch.uint8))]
    with pytest.raises(UserError, match="street_7: its mask is 4x6 pixels, its image 6x4"):
        confusion({"student": constant(0)}, images, 3, CPU, "fp32")


@pytest.fixture(scope="module")
def small() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build(Network("deeplabv3plus", "resnet18", "none", decoder_channels=16), 3)


def test_evaluation_leaves_the_network_as_it_was(small, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    small.train()
    small.backbone.bn1.eval()  # a frozen layer stays frozen, the others go back to training
    modes = [module.training for module in small.modules()]
    before = {name: value.clone() for name, value in small.state_dict().items()}
    images = photographs((33, 40), (33, 40))
    first = confusion({"student": small}, images, 3, CPU, "fp32")["student"]
    again = confusion({"student": small}, images, 3, CPU, "fp32")["student"]
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
        confusion({"student": small}, broken, 3, CPU, "fp32")
    assert all(module.training for module in small.modules())
    assert torch.is_grad_enabled()


def test_precision_reaches_the_network(small):
    seen = []
    hook = small.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images = photographs((48, 40))
    try:
        matrices = {
            precision: confusion({"student": small}, images, 3, CPU, precision)["student"]
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

    confusion({str(number): constant(number) for number in range(3)}, stream(), 3, CPU, "fp32")
    assert read == ["0", "1"]
