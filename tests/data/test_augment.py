import colorsys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from semiseg.data import augment
from semiseg.data.augment import IGNORE, Pixels

BATCH, HEIGHT, WIDTH = 6, 17, 23


def images(batch: int = BATCH) -> Tensor:
    return torch.rand(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def coordinates(batch: int) -> Pixels:
    """Return pixels that hold their place: colour (y, x, image), label the row, weight the column."""
    y = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    x = torch.arange(WIDTH)[None, :].expand(HEIGHT, WIDTH)
    colour = torch.stack((y / HEIGHT, x / WIDTH, torch.zeros(HEIGHT, WIDTH)))
    return Pixels(
        colour.expand(batch, -1, -1, -1).contiguous(),
        y.expand(batch, -1, -1).contiguous(),
        (x / WIDTH).expand(batch, -1, -1).contiguous(),
    )


# --- colour ---------------------------------------------------------------------------------------------


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
        ("hue", reference.adjust_hue),
    ],
)
def test_each_image_is_jittered_by_a_factor_in_the_range(name: str, function: object) -> None:
    torch.manual_seed(0)
    strengths = dict.fromkeys(JITTER, 0.0) | {name: 0.4}
    before = images()
    after = augment.colour_jitter(before, probability=1, **strengths)
    factors = torch.linspace(-0.4, 0.4, 401) + (0 if name == "hue" else 1)
    found = []
    for image, jittered in zip(before, after, strict=True):
        errors = torch.stack([(function(image, float(f)) - jittered).abs().max() for f in factors])
        assert errors.min() < 7e-3  # half a step of the grid, six times over for hue
        found.append(float(factors[errors.argmin()]))
    assert len(set(found)) == BATCH  # each image has its own draw


def more_saturated(image: Tensor, factor: float) -> Tensor:
    after = torch.empty_like(image)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
            after[:, y, x] = torch.tensor(colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value))
    return after


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", lambda image, factor: (image + factor - 1).clamp(0, 1)),
        ("contrast", lambda image, factor: (image * factor).clamp(0, 1)),
        ("saturation", more_saturated),
    ],
)
def test_additive_jitter_adds_brightness_and_multiplies_colour_and_hsvs_saturation(
    name: str, function: Callable[[Tensor, float], Tensor]
) -> None:
    torch.manual_seed(0)
    strengths = dict.fromkeys(JITTER, 0.0) | {name: 0.4}
    before = images(2)
    before[:, :, 0] = before[:, :1, 0]  # a row of greys
    after = augment.colour_jitter(before, probability=1, **strengths, additive=True)
    for image, jittered in zip(before, after, strict=True):
        factors = torch.linspace(0.6, 1.4, 41).tolist()
        errors = [(function(image, factor) - jittered).abs().max() for factor in factors]
        assert min(errors) < 0.012  # half a step of the grid
        assert max(errors) > 0.2


@pytest.mark.parametrize("additive", [False, True])
def test_no_jitter_strength_changes_nothing(additive: bool) -> None:
    before, none = images(), dict.fromkeys(JITTER, 0.0)
    after = augment.colour_jitter(before, probability=1, **none, additive=additive)
    assert torch.allclose(after, before, atol=1e-6)


def test_greyscale_is_the_luma_in_three_channels() -> None:
    after = augment.greyscale(images(), probability=1)
    assert torch.allclose(after, reference.rgb_to_grayscale(images(), 3), atol=2e-4)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.5])
def test_blur_is_a_gaussian(sigma: float) -> None:
    radius = -int(-3 * sigma // 1)
    expected = reference.gaussian_blur(images(), [2 * radius + 1] * 2, [sigma, sigma])
    after = augment.gaussian_blur(images(), probability=1, sigma=(sigma, sigma))
    assert torch.allclose(after, expected, atol=1e-5)


def test_blur_by_axis_blurs_columns_by_the_first_deviation_and_rows_by_the_second() -> None:
    sigma = (0.5, 1.5)
    expected = reference.gaussian_blur(images(), [11, 11], list(reversed(sigma)))  # torchvision: x, y
    after = augment.gaussian_blur(images(), probability=1, sigma=sigma, by_axis=True)
    assert torch.allclose(after, expected, atol=1e-4)


def test_blur_with_a_kernel_is_its_weighted_mean_over_both_axes() -> None:
    before, taps = images(2), (1.0, 4.0, 6.0, 4.0, 1.0)
    after = augment.kernel_blur(before, probability=1, taps=taps)
    for y in range(2, HEIGHT - 2):
        for x in range(2, WIDTH - 2):
            around = before[:, :, y - 2 : y + 3, x - 2 : x + 3]
            weights = torch.outer(torch.tensor(taps), torch.tensor(taps)) / 256
            assert torch.allclose(after[:, :, y, x], (weights * around).sum(dim=(2, 3)), atol=1e-6)
    flat = torch.full((2, 3, 5, 7), 0.3)
    assert torch.allclose(augment.kernel_blur(flat, probability=1, taps=taps), flat, atol=1e-6)


def test_blur_is_as_exact_under_autocast() -> None:
    images = torch.rand(2, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        blurred = augment.kernel_blur(images, probability=1.0, taps=(1.0, 2.0, 1.0))
    assert torch.equal(blurred, augment.kernel_blur(images, probability=1.0, taps=(1.0, 2.0, 1.0)))


def test_blur_of_an_image_smaller_than_its_kernel_keeps_a_flat_colour() -> None:
    flat = torch.full((2, 3, 3, 5), 0.3)
    assert torch.allclose(augment.gaussian_blur(flat, probability=1, sigma=(2, 3)), flat, atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_image_is_drawn_with_the_probability(probability: float) -> None:
    torch.manual_seed(0)
    many = images(1000)[:, :, :4, :4]
    for changed in (
        augment.colour_jitter(many, probability=probability, **JITTER),
        augment.gaussian_blur(many, probability=probability, sigma=(0.5, 2.0)),
        augment.greyscale(many, probability=probability),
    ):
        share = (changed != many).flatten(1).any(dim=1).float().mean()
        assert float(share) == pytest.approx(probability, abs=0.05)
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_a_seed_decides_everything() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        pixels = augment.random_scale_crop(coordinates(4), probability=0.5, scale=(0.7, 1.5))
        results.append(augment.colour_jitter(pixels.images, probability=0.5, **JITTER))
    assert torch.equal(*results)


# --- geometry -------------------------------------------------------------------------------------------


def test_flip_moves_images_labels_and_weights_together() -> None:
    torch.manual_seed(0)
    before = coordinates(200)
    after = augment.random_flip(before, probability=0.5)
    flipped = after.images[:, 1, 0, 0] > 0
    assert 60 < int(flipped.sum()) < 140
    for ours, its in zip(after, before, strict=True):
        assert torch.equal(ours[flipped], its[flipped].flip(-1))
        assert torch.equal(ours[~flipped], its[~flipped])


@pytest.mark.parametrize("scale", [(0.4, 0.95), (1.05, 2.5), (0.5, 2.0)])
def test_scale_crop_keeps_images_labels_and_weights_on_the_same_source(scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    after = augment.random_scale_crop(coordinates(50), probability=1, scale=scale)
    inside = after.labels != IGNORE
    assert inside.flatten(1).any(dim=1).all()
    assert ((after.images[:, 0] * HEIGHT - after.labels)[inside].abs() <= 0.51).all()  # nearest row
    assert torch.allclose(after.images[:, 1][inside], after.weights[inside], atol=1e-5)
    assert not after.weights[~inside].any()
    assert not after.images.permute(0, 2, 3, 1)[~inside].any()


def test_a_larger_scale_leaves_no_padding_and_windows_differ() -> None:
    torch.manual_seed(0)
    after = augment.random_scale_crop(coordinates(20), probability=1, scale=(2.0, 2.0))
    assert (after.labels != IGNORE).all()
    corners = after.images[:, :2, 0, 0]
    assert len(torch.unique(corners, dim=0)) > 10
    step = after.images[:, 1, 0, 10] - after.images[:, 1, 0, 9]
    assert torch.allclose(step, torch.full_like(step, 0.5 / WIDTH), atol=1e-5)  # twice as large


def test_a_smaller_scale_is_centred_on_padding() -> None:
    after = augment.random_scale_crop(coordinates(1), probability=1, scale=(0.5, 0.5))
    rows = (after.labels[0] != IGNORE).any(dim=1).nonzero().flatten().tolist()
    columns = (after.labels[0] != IGNORE).any(dim=0).nonzero().flatten().tolist()
    assert len(rows) in (HEIGHT // 2, HEIGHT // 2 + 1)
    assert len(columns) in (WIDTH // 2, WIDTH // 2 + 1)
    assert abs(rows[0] - (HEIGHT - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (WIDTH - 1 - columns[-1])) <= 1


def test_an_image_that_is_not_drawn_stays_itself() -> None:
    before = coordinates(3)
    after = augment.random_scale_crop(before, probability=0, scale=(0.5, 2))
    assert torch.allclose(after.images, before.images, atol=1e-5)
    assert torch.equal(after.labels, before.labels)


# --- mixing ---------------------------------------------------------------------------------------------


def striped(batch: int, classes: int) -> Pixels:
    """Return images of every class in vertical stripes, and padding; colour and weight name the image."""
    x = torch.arange(WIDTH).expand(batch, HEIGHT, WIDTH)
    labels = torch.where(x < 3, IGNORE, x % classes)
    owner = (torch.arange(batch) / batch).view(-1, 1, 1).expand(batch, HEIGHT, WIDTH)
    return Pixels(owner[:, None].expand(-1, 3, -1, -1).contiguous(), labels.roll(1, 2), owner.contiguous())


@pytest.mark.parametrize(("extra", "pasted_classes"), [(0, 3), (1, 4)])
def test_classmix_pastes_half_of_the_next_images_classes(extra: int, pasted_classes: int) -> None:
    torch.manual_seed(0)
    before = striped(4, classes=6)
    after = augment.classmix(before, num_classes=6, probability=1, background=None, extra_classes=extra)
    theirs = before.weights.roll(-1, 0)
    pasted = after.weights == theirs
    for i in range(4):
        source = before.labels[(i + 1) % 4]
        classes = torch.unique(source[pasted[i]])
        assert len(classes) == pasted_classes
        assert IGNORE not in classes
        assert torch.equal(pasted[i], torch.isin(source, classes))  # whole classes
        assert torch.equal(after.labels[i], torch.where(pasted[i], source, before.labels[i]))
    expected = torch.where(pasted[:, None], before.images.roll(-1, 0), before.images)
    assert torch.equal(after.images, expected)


def test_classmix_never_pastes_background_or_ignored_pixels() -> None:
    torch.manual_seed(0)
    before = striped(4, classes=3)
    for _ in range(20):
        after = augment.classmix(before, num_classes=3, probability=1, background=0, extra_classes=1)
        pasted = after.weights != before.weights
        source = before.labels.roll(-1, 0)[pasted]
        assert set(source.tolist()) == {1, 2}


def test_classmix_draws_every_class_and_each_image_with_the_probability() -> None:
    torch.manual_seed(0)
    before = striped(600, classes=4)
    after = augment.classmix(before, num_classes=4, probability=0.75, background=None)
    pasted = after.weights != before.weights
    assert float(pasted.flatten(1).any(dim=1).float().mean()) == pytest.approx(0.75, abs=0.06)
    for c in range(4):
        share = (pasted & (before.labels.roll(-1, 0) == c)).flatten(1).any(dim=1).float().mean()
        assert float(share) == pytest.approx(0.75 / 2, abs=0.07)


def test_an_image_of_background_and_padding_gives_nothing() -> None:
    before = striped(2, classes=1)
    after = augment.classmix(before, num_classes=3, probability=1, background=0, extra_classes=1)
    assert torch.equal(after.images, before.images)
