import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from semiseg.base.parameters import Geometry
from semiseg.data.geometry import (
    PADDING,
    pad_image,
    pad_mask,
    random_scale_crop_flip,
    resize_image,
    resize_mask,
)


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return an image whose red is the mask's class times 100, in blocks of 8 pixels, and the mask."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows // 8 + columns // 8) % 3).to(torch.uint8)
    return torch.stack([mask * 100, mask, mask]), mask


@pytest.mark.parametrize(
    ("height", "width", "size"), [(30, 40, (15, 20)), (40, 30, (20, 15)), (7, 20, (7, 20))]
)
def test_the_long_side_is_as_asked_and_the_shape_kept(height: int, width: int, size: tuple[int, int]) -> None:
    image, mask = pair(height, width)
    image, mask = resize_image(image, 20), resize_mask(mask, 20)
    assert image.shape == (3, *size)
    assert mask.shape == size
    assert image.dtype == mask.dtype == torch.uint8


def test_image_and_mask_are_scaled_about_the_same_points() -> None:
    # A ramp: the mean of four neighbours lies at their centre, from which the nearest mask pixel is taken.
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1) * 2
    image, mask = resize_image(ramp.expand(3, -1, -1), 16), resize_mask(ramp, 16)
    difference = image[0, :, 2:-2].int() - mask[:, 2:-2].int()
    assert difference.abs().max() <= 1  # half a pixel of the ramp; a corner would be 3 away


def test_a_mask_is_never_mixed() -> None:
    mask = torch.tensor([[0, 2], [255, 2]], dtype=torch.uint8).repeat(10, 10)
    for side in (7, 13, 20, 33):
        assert set(resize_mask(mask, side).unique().tolist()) <= {0, 2, 255}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(0, 50), st.integers(0, 50))
def test_a_window_of_a_mask_is_cut_from_what_torchvision_resizes(
    height: int, width: int, long_side: int, top: int, left: int
) -> None:
    mask = torch.randint(256, (height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = list(resize_image(mask.expand(3, -1, -1), long_side).shape[-2:])
    whole = resize(mask[None], size, InterpolationMode.NEAREST_EXACT)[0]
    window = slice(top, top + 40), slice(left, left + 40)
    assert torch.equal(resize_mask(mask, long_side), whole)
    assert torch.equal(resize_mask(mask, long_side, window), whole[window])


def test_padding_is_the_mean_colour_and_255() -> None:
    image, mask = (pad(each, 4, 7) for pad, each in zip((pad_image, pad_mask), pair(3, 5), strict=True))
    assert tuple(round(255 * mean) for mean in (0.485, 0.456, 0.406)) == PADDING
    assert torch.equal(image[:, :3, :5], pair(3, 5)[0])
    assert torch.equal(mask[:3, :5], pair(3, 5)[1])
    outside = torch.ones(4, 7, dtype=torch.bool)
    outside[:3, :5] = False
    assert set(mask[outside].tolist()) == {255}
    assert {tuple(pixel) for pixel in image[:, outside].T.tolist()} == {PADDING}
    assert pad_image(torch.ones(2, 3, 5), 3, 6)[:, :, 5].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert pad_image(image, 2, 7) is image


def test_padding_after_the_crop_is_cropping_the_padded() -> None:
    """The crop shows the same, at the same place, for images smaller and larger than it."""
    for seed, (height, width) in enumerate([(10, 40), (40, 10), (10, 12), (40, 40)] * 8):
        image, mask = pair(height, width)
        geometry = Geometry(max(height, width), (1.0, 1.0), 24)
        view, labels = random_scale_crop_flip(image, mask, geometry, torch.Generator().manual_seed(seed))
        whole, whole_mask = pad_image(image, 24, 24), pad_mask(mask, 24, 24)
        windows = [
            (whole[:, top : top + 24, left : left + 24], whole_mask[top : top + 24, left : left + 24])
            for top in range(whole.shape[-2] - 23)
            for left in range(whole.shape[-1] - 23)
        ]
        windows += [(shown.flip(-1), its_mask.flip(-1)) for shown, its_mask in windows]
        assert any(torch.equal(view, shown) and torch.equal(labels, its) for shown, its in windows)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 50),
    width=st.integers(8, 50),
    low=st.floats(0.3, 1.5),
    span=st.floats(0, 1.5),
    seed=st.integers(0, 1000),
)
def test_a_crop_has_its_size_and_its_mask_follows(
    height: int, width: int, low: float, span: float, seed: int
) -> None:
    geometry = Geometry(40, (low, low + span), 24)
    image, mask = pair(height, width)
    image[1:] = 0
    view, labels = random_scale_crop_flip(image, mask, geometry, torch.Generator().manual_seed(seed))
    again, _ = random_scale_crop_flip(image, mask, geometry, torch.Generator().manual_seed(seed))
    assert torch.equal(view, again)
    assert view.shape == (3, 24, 24)
    assert labels.shape == (24, 24)
    assert view.is_contiguous()
    padded = labels == 255
    assert (view[1] == PADDING[1])[padded].all()
    assert (view[1] == 0)[~padded].all()
    # The same draw without a mask tells exactly the padding.
    _, inside = random_scale_crop_flip(image, None, geometry, torch.Generator().manual_seed(seed))
    assert torch.equal(inside == 255, padded)
    assert set(inside.unique().tolist()) <= {0, 255}


def test_crop_and_flip_move_image_and_mask_as_one() -> None:
    image, mask = pair(40, 40)
    geometry = Geometry(40, (1.0, 1.0), 24)  # the image's own scale: no pixel is mixed
    views = [
        random_scale_crop_flip(image, mask, geometry, torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    for view, labels in views:
        assert torch.equal(view[0], labels * 100)
    assert len({labels.numpy().tobytes() for _, labels in views}) > 20


def test_half_of_the_views_are_flipped_and_every_crop_is_possible() -> None:
    columns = torch.arange(6, dtype=torch.uint8).repeat(6, 1)
    geometry = Geometry(6, (1.0, 1.0), 4)
    seen = [
        random_scale_crop_flip(
            columns.expand(3, -1, -1), columns, geometry, torch.Generator().manual_seed(seed)
        )
        for seed in range(400)
    ]
    rows = [tuple(mask[0].tolist()) for _, mask in seen]
    plain = {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}
    assert set(rows) == plain | {row[::-1] for row in plain}
    assert 150 < sum(row in plain for row in rows) < 250


def test_scales_fill_their_range() -> None:
    # The padded part of a crop tells the scale: 40 pixels wide at scale one, in a crop of 80.
    image, mask = pair(40, 40)
    widths = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        _, labels = random_scale_crop_flip(image, mask, Geometry(40, (0.5, 2.0), 80), generator)
        widths.append(int((labels[0] != 255).sum()))
    assert min(widths) >= 20
    assert max(widths) <= 80
    assert min(widths) < 23
    assert max(widths) > 77
    assert abs(sum(widths) / len(widths) - 50) < 3
