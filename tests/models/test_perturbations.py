import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import conv2d, kl_div, pixel_shuffle, relu

from semiseg.base.labels import IGNORE
from semiseg.models import perturbations
from semiseg.models.auxiliary_decoders import AuxiliaryDecoders
from semiseg.models.perturbations import connected_regions, guided_cutout

BATCH, DIM, HEIGHT, WIDTH, DECODERS = 2, 3, 4, 5, 2


def features() -> Tensor:
    """Draw features as after a ReLU: none negative, some zero."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, DIM, HEIGHT, WIDTH, generator=generator).clamp(min=0)


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- random perturbations -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, BATCH])
def test_noise_is_multiplied_and_added(rows: int) -> None:
    z, noise = features(), 0.6 * uniform(rows, DECODERS, DIM, HEIGHT, WIDTH) - 0.3
    found = perturbations.feature_noise(z, noise)
    assert found.shape == (BATCH, DECODERS, DIM, HEIGHT, WIDTH)
    for b, k, d, y, x in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        value = float(z[b, d, y, x])
        expected = value * float(noise[b if rows > 1 else 0, k, d, y, x]) + value
        assert float(found[b, k, d, y, x]) == pytest.approx(expected, rel=1e-6)


def test_the_most_active_places_are_dropped() -> None:
    z, threshold = features(), 0.6 + 0.3 * uniform(BATCH, DECODERS)
    found = perturbations.feature_drop(z, threshold)
    for b in range(BATCH):
        activity = [
            [sum(float(z[b, d, y, x]) for d in range(DIM)) for x in range(WIDTH)] for y in range(HEIGHT)
        ]
        largest = max(map(max, activity))
        for k in range(DECODERS):
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    keep = activity[y][x] / largest < float(threshold[b, k])
                    assert torch.equal(found[b, k, :, y, x], keep * z[b, :, y, x])
    assert (found.sum(dim=2) == 0).any()


def test_dropout_takes_whole_channels_and_scales_the_rest() -> None:
    z, draws = features(), uniform(BATCH, DECODERS, DIM)
    found = perturbations.channel_dropout(z, draws, 0.4)
    for b, k, d in torch.cartesian_prod(*map(torch.arange, draws.shape)).tolist():
        expected = z[b, d] / 0.6 if draws[b, k, d] >= 0.4 else torch.zeros_like(z[b, d])
        assert torch.allclose(found[b, k, d], expected, rtol=1e-6)
    many = perturbations.channel_dropout(torch.ones(1, 1000, 1, 1), uniform(1, 5, 1000), 0.4)
    assert (many == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert many.mean().item() == pytest.approx(1, abs=0.03)


def test_complementary_dropout_shares_the_channels_out_between_two_views() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(2, 3, 4, 2, 2)
    draws = torch.tensor([[0.1, 0.5, 0.9, 0.4]]).expand(3, 4)
    first, second = perturbations.complementary_dropout(one, two, draws, torch.tensor([False, True, False]))
    for image in (0, 2):
        for channel, kept_by_first in enumerate([False, True, True, False]):
            assert torch.equal(first[image, channel], 2.0 * kept_by_first * one[image, channel])
            assert torch.equal(second[image, channel], 2.0 * (not kept_by_first) * two[image, channel])
    assert torch.equal(first[1], one[1])
    assert torch.equal(second[1], two[1])


def test_a_mask_keeps_its_places() -> None:
    z, places = features(), uniform(BATCH, HEIGHT, WIDTH) < 0.5
    found = perturbations.masked(z, places)
    assert found.shape == (BATCH, 1, DIM, HEIGHT, WIDTH)
    assert torch.equal(found[:, 0] + perturbations.masked(z, ~places)[:, 0], z)
    assert not found[:, 0].movedim(1, -1)[~places].any()


# --- connected regions ----------------------------------------------------------------------------------


def regions_by_scipy(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the regions of (h, w), each named by its first position."""
    named = np.full(labels.shape, labels.size)
    for label in set(np.unique(labels)) - {IGNORE}:
        numbered, number = ndimage.label(labels == label, structure=np.ones((3, 3)))
        for region in range(1, number + 1):
            named[numbered == region] = np.flatnonzero(numbered == region)[0]
    return named


@pytest.mark.parametrize("density", [0.3, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("classes", [1, 3])
def test_regions_are_scipys(density: float, classes: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, (20, 31, 45))
    labels[generator.random(labels.shape) > density] = IGNORE
    found = connected_regions(torch.from_numpy(labels), IGNORE).numpy()
    for ours, each in zip(found, labels, strict=True):
        assert (ours == regions_by_scipy(each)).all()


def snake(side: int) -> NDArray[np.int64]:
    """Draw one region that winds through all rows."""
    labels = np.full((side, side), IGNORE)
    labels[::2] = 0
    labels[1::4, -1], labels[3::4, 0] = 0, 0
    return labels


def spiral(side: int) -> NDArray[np.int64]:
    """Draw one region that winds to the middle."""
    labels = np.full((side, side), IGNORE)
    y, x, down, right = 0, 0, 0, 1
    labels[0, 0] = turns = 0
    while turns < 2:
        ahead = [(y + n * down, x + n * right) for n in (1, 2)]
        inside = [all(0 <= place < side for place in each) for each in ahead]
        if inside[0] and labels[ahead[0]] == IGNORE and not (inside[1] and labels[ahead[1]] == 0):
            (y, x), turns = ahead[0], 0
            labels[y, x] = 0
        else:
            down, right, turns = right, -down, turns + 1
    return labels


@pytest.mark.parametrize("winding", [snake, spiral])
@pytest.mark.parametrize("side", [8, 41, 81, 161])
def test_long_winding_regions_are_joined_in_time(winding: type, side: int) -> None:
    labels = winding(side)
    for turned in (labels, labels[::-1], labels[:, ::-1], labels.T, labels[::-1, ::-1]):
        found = connected_regions(torch.from_numpy(turned.copy())[None], IGNORE)[0].numpy()
        assert len(np.unique(found[turned == 0])) == 1
        assert (found[turned != 0] == labels.size).all()


def test_a_single_position_is_a_region() -> None:
    assert connected_regions(torch.tensor([[[3]], [[IGNORE]]]), IGNORE).tolist() == [[[0]], [[1]]]


# --- guided cut-out -------------------------------------------------------------------------------------


def kept_by_loops(labels: NDArray[np.int64], draws: Tensor, share: float) -> NDArray[np.bool_]:
    """Return the positions that one decoder keeps of one image."""
    kept = np.ones(labels.shape, dtype=bool)
    regions = regions_by_scipy(labels)
    for name in set(np.unique(regions)) - {labels.size}:
        rows, columns = np.nonzero(regions == name)
        box = []
        for axis, places in enumerate((rows, columns)):
            extent = places.max() - places.min() + 1
            side = math.floor(extent * share + 1e-6)
            first = places.min() + math.floor(float(draws[name, axis]) * (extent - side + 1))
            box.append(slice(first, first + side))
        kept[tuple(box)] = False
    return kept


@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
def test_a_box_of_every_object_is_cut_out(share: float) -> None:
    batch, height, width = 6, 17, 23
    generator = np.random.default_rng(0)
    blobs = ndimage.uniform_filter(generator.random((batch, height, width)), (0, 5, 5))
    labels = np.digitize(blobs, [0.45, 0.5, 0.55])
    labels[labels == 0] = IGNORE
    draws = uniform(batch, DECODERS, height * width, 2)
    objects = connected_regions(torch.from_numpy(labels), IGNORE)
    found = guided_cutout(torch.ones(batch, 1, height, width), objects, draws, share)
    assert found.shape == (batch, DECODERS, 1, height, width)
    for b in range(batch):
        for k in range(DECODERS):
            expected = kept_by_loops(labels[b], draws[b, k], share)
            assert (found[b, k, 0].numpy() == expected).all()
    assert 0 < (found == 0).float().mean() < 1


def test_where_nothing_is_found_nothing_is_cut_out() -> None:
    nowhere = torch.full((1, 4, 5), 20)
    found = guided_cutout(torch.ones(1, 2, 4, 5), nowhere, uniform(1, 3, 20, 2), 0.4)
    assert torch.equal(found, torch.ones(1, 3, 2, 4, 5))


def test_the_box_may_lie_anywhere_in_its_object() -> None:
    """An object of 5 x 10 positions: a box of 2 x 4 with four places down and seven across."""
    objects = torch.full((1, 9, 12), 9 * 12)
    objects[0, 2:7, 1:11] = 2 * 12 + 1
    found = guided_cutout(torch.ones(1, 1, 9, 12), objects, uniform(1, 4000, 9 * 12, 2), 0.4)
    erased = (found[0, :, 0] == 0).numpy()
    assert (erased.sum(axis=(1, 2)) == 8).all()
    assert not erased[:, 7:].any()
    assert not erased[:, :, 11:].any()
    down, across = erased.any(axis=2).argmax(axis=1) - 2, erased.any(axis=1).argmax(axis=1) - 1
    for places, number in ((down, 4), (across, 7)):
        counts = np.bincount(places, minlength=number)
        assert len(counts) == number
        assert counts == pytest.approx(np.full(number, 4000 / number), rel=0.15)


# --- virtual adversarial training -----------------------------------------------------------------------


def adversarial_by_differences(z: Tensor, draws: Tensor, decode: object, radius: float, xi: float) -> Tensor:
    """Take one power iteration as Miyato et al. write it: one image (D, h, w), one decoder, float64."""
    direction = draws.double() - 0.5
    direction = (direction / direction.norm()).requires_grad_()
    z = z.double()
    p = torch.softmax(decode(z), dim=0)
    logarithm = torch.log_softmax(decode(z + xi * direction), dim=0)
    (gradient,) = torch.autograd.grad(kl_div(logarithm, p, reduction="sum"), direction)
    return radius * gradient / gradient.norm()


@pytest.mark.parametrize("doublings", [0, 2])
def test_one_power_iteration_finds_the_direction_that_changes_the_prediction_most(doublings: int) -> None:
    torch.manual_seed(0)
    decoders = AuxiliaryDecoders(DECODERS, DIM, 4, doublings)
    for stage in decoders.upsampling:
        torch.nn.init.normal_(stage.bias)  # no ReLU is at its kink where features are zero
    z, draws = features(), uniform(BATCH, DECODERS, DIM, HEIGHT, WIDTH)
    found = perturbations.adversarial(z, draws, decoders, 2.0)

    for k in range(DECODERS):
        weight = decoders.classifier.weight[k].detach().double()[..., None, None]
        stages = [
            (stage.weight[k].detach().double()[..., None, None], stage.bias[k].detach().double().flatten())
            for stage in decoders.upsampling
        ]

        def decode(
            rows: Tensor, weight: Tensor = weight, stages: list[tuple[Tensor, Tensor]] = stages
        ) -> Tensor:
            logits = conv2d(rows[None], weight)
            for stage in stages:
                logits = pixel_shuffle(relu(conv2d(logits, *stage)), 2)
            return logits[0]

        for b in range(BATCH):
            expected = adversarial_by_differences(z[b], draws[b, k], decode, 2.0, xi=1e-6)
            assert (found[b, k] - expected).norm() <= 2e-6 * expected.norm()
            assert found[b, k].norm().item() == pytest.approx(2.0, rel=1e-6)


def test_the_adversarial_direction_changes_the_prediction_more_than_a_random_one() -> None:
    torch.manual_seed(0)
    decoders = AuxiliaryDecoders(4, 16, 5)
    z, draws = torch.rand(3, 16, 6, 6), torch.rand(3, 4, 16, 6, 6)

    def divergence(change: Tensor) -> Tensor:
        p = torch.softmax(decoders(z[:, None].expand_as(draws)), dim=2)
        changed = torch.log_softmax(decoders(z[:, None] + change), dim=2)
        return kl_div(changed, p, reduction="none").sum(dim=(2, 3, 4))

    random = draws - 0.5
    random = 2 * random / random.flatten(2).norm(dim=2)[..., None, None, None]
    found = perturbations.adversarial(z, draws, decoders, 2.0)
    assert (divergence(found) > 2 * divergence(random)).all()


def test_the_search_leaves_no_gradient_and_takes_none() -> None:
    decoders = AuxiliaryDecoders(DECODERS, DIM, 4)
    z = features().requires_grad_()
    found = perturbations.adversarial(z, uniform(BATCH, DECODERS, DIM, HEIGHT, WIDTH), decoders, 2.0)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in decoders.parameters())


def test_a_certain_prediction_is_not_perturbed() -> None:
    """No direction changes a prediction whose probabilities are zero or one in float32."""
    decoders = AuxiliaryDecoders(1, DIM, 2)
    with torch.no_grad():
        decoders.classifier.bias.copy_(torch.tensor([500.0, -500.0]).view(1, 2, 1))
    found = perturbations.adversarial(features(), uniform(BATCH, 1, DIM, HEIGHT, WIDTH), decoders, 2.0)
    assert not found.any()
