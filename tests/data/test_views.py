import math

import pytest
import torch
from torch import Tensor

from semiseg.base.parameters import Geometry
from semiseg.data.geometry import PADDING
from semiseg.data.views import (
    DRAWS,
    Box,
    cell_centres,
    cell_distances,
    context_views,
    counterparts,
    overlapping_crops,
    resized_crops,
    unflipped,
)

IOU = (0.1, 1.0)


def coordinates(height: int, width: int) -> Tensor:
    """Return (2, H, W) int64: every pixel holds its row and column, counted from 1; 0 is padding."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((y, x)) + 1


def inside(crop: Tensor, box: Box) -> Tensor:
    y0, x0, y1, x1 = box
    return crop[:, y0:y1, x0:x1]


def extent(crop: Tensor) -> tuple[list[int], list[int]]:
    """Return the first and the last row and column of the image that a crop shows."""
    shown = crop[:, (crop > 0).all(dim=0)]
    return shown.amin(dim=1).tolist(), shown.amax(dim=1).tolist()


def integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def iou(crop1: Tensor, crop2: Tensor, size: int) -> float:
    """Return the squares' intersection over union, from the places of their corners in the image."""
    down, right = (crop2[:, 0, 0] - crop1[:, 0, 0]).abs().tolist()
    intersection = max(0, size - down) * max(0, size - right)
    return intersection / (2 * size**2 - intersection)


def test_both_boxes_show_the_same_pixels_for_a_thousand_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    smaller = empty = moved = 0
    for _ in range(1000):
        stride = integer(1, 12, generator)
        size = integer(1, 12, generator) * stride
        height, width = integer(1, 200, generator), integer(1, 200, generator)
        crop1, crop2, box1, box2 = overlapping_crops(coordinates(height, width), size, stride, IOU, generator)
        assert crop1.shape == crop2.shape == (2, size, size)
        for box in (box1, box2):
            assert all(edge % stride == 0 for edge in box)
            assert 0 <= box.y0 <= box.y1 <= size
            assert 0 <= box.x0 <= box.x1 <= size
        shown = []
        for crop, box in ((crop1, box1), (crop2, box2)):
            flip = integer(0, 1, generator) == 1
            seen = crop.flip(-1) if flip else crop
            shown.append(inside(unflipped(seen[None], torch.tensor([flip]))[0], box))
        one, two = shown
        assert torch.equal(one, two)
        assert (one > 0).all()  # no padding
        assert IOU[0] <= iou(crop1, crop2, size) <= IOU[1]
        assert ((crop2[:, 0, 0] - crop1[:, 0, 0]) % stride == 0).all()

        # the box covers the overlap down to whole strides
        (top1, left1), (bottom1, right1) = extent(crop1)
        (top2, left2), (bottom2, right2) = extent(crop2)
        rows = max(0, min(bottom1, bottom2) - max(top1, top2) + 1)
        columns = max(0, min(right1, right2) - max(left1, left2) + 1)
        assert one.shape[1:] == (rows // stride * stride, columns // stride * stride)
        smaller += height < size or width < size
        empty += one.numel() == 0
        moved += not torch.equal(crop1, crop2)
    assert smaller > 100  # the examples cover all cases
    assert empty > 0
    assert moved > 300


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_after_undoing_flips_both_boxes_show_the_same_pixels(flips: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        image = coordinates(integer(20, 120, generator), integer(20, 120, generator))
        crop1, crop2, box1, box2 = overlapping_crops(image, 64, 8, IOU, generator)
        crops = [
            unflipped((crop.flip(-1) if flip else crop)[None], torch.tensor([flip]))[0]
            for crop, flip in zip((crop1, crop2), flips, strict=True)
        ]
        assert torch.equal(inside(crops[0], box1), inside(crops[1], box2))


def test_the_range_of_iou_is_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(200):
        crop1, crop2, _, _ = overlapping_crops(coordinates(150, 150), 64, 8, (0.3, 0.7), generator)
        if not torch.equal(crop1, crop2):
            found.append(iou(crop1, crop2, 64))
    assert len(found) > 150
    assert 0.3 <= min(found) < 0.4
    assert 0.6 < max(found) <= 0.7


def test_without_a_fitting_second_crop_the_first_is_taken_twice() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        crop1, crop2, box1, box2 = overlapping_crops(coordinates(90, 90), 64, 8, (0.0, 0.01), generator)
        assert torch.equal(crop1, crop2)
        assert box1 == box2 == (0, 0, 64, 64)


def test_there_are_fifty_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, randint = [], torch.randint

    def counted(*arguments: object, **named: object) -> torch.Tensor:
        draws.append(arguments)
        return randint(*arguments, **named)

    monkeypatch.setattr(torch, "randint", counted)
    overlapping_crops(coordinates(90, 80), 64, 8, (0.0, 0.01), torch.Generator().manual_seed(0))
    assert len(draws) == 2 * (1 + DRAWS) == 102


def test_crops_cover_the_whole_image() -> None:
    generator = torch.Generator().manual_seed(4)
    corners = set()
    for _ in range(600):
        for crop in overlapping_crops(coordinates(20, 21), 16, 4, (0.0, 1.0), generator)[:2]:
            corners.add(tuple(crop[:, 0, 0].tolist()))
    assert corners == {(y, x) for y in range(1, 6) for x in range(1, 7)}


def test_padding_has_the_mean_colour() -> None:
    image = torch.full((3, 10, 40), 7, dtype=torch.uint8)
    crop1, _, box1, _ = overlapping_crops(image, 32, 8, IOU, torch.Generator().manual_seed(0))
    assert (crop1[:, :10] == 7).all()
    assert (crop1[:, 10:] == torch.tensor(PADDING, dtype=torch.uint8)[:, None, None]).all()
    assert (box1.y0, box1.y1) == (0, 8)


@pytest.mark.parametrize("cell", [4, 8])
def test_counterparts_are_the_same_pixels(cell: int) -> None:
    """Each position's feature is the coordinates of its first pixel; flips are undone on features."""
    generator = torch.Generator().manual_seed(5)
    pairs = [
        overlapping_crops(
            coordinates(integer(30, 130, generator), integer(30, 130, generator)), 64, 8, IOU, generator
        )
        for _ in range(40)
    ]
    crop1, crop2 = (torch.stack([pair[place] for pair in pairs]) for place in (0, 1))
    box1, box2 = (torch.tensor([pair[place] for pair in pairs]) for place in (2, 3))
    features1, features2 = (
        each[:, :, ::cell, ::cell].permute(0, 2, 3, 1).flatten(0, 2) for each in (crop1, crop2)
    )
    index, valid = counterparts(box1, box2, 64 // cell, 64 // cell, cell)
    assert torch.equal(features1[valid], features2[index[valid]])
    assert (features1[valid] > 0).all()
    areas = [(box.y1 - box.y0) * (box.x1 - box.x0) // cell**2 for _, _, box, _ in pairs]
    assert valid.view(40, -1).sum(dim=1).tolist() == areas
    assert not index[~valid].any()
    back, back_valid = counterparts(box2, box1, 64 // cell, 64 // cell, cell)
    positions = torch.arange(len(index))
    assert torch.equal(back[index[valid]], positions[valid])
    assert back_valid.sum() == valid.sum()


def test_context_views_flip_each_crop_by_itself() -> None:
    """A gradient from left to right and from top to bottom tells where a pixel comes from."""
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    image[0] = torch.arange(120)
    image[1] = torch.arange(90)[:, None]
    geometry = Geometry(base_size=120, scale=(1.0, 1.0), crop=48)
    generator, flips, apart = torch.Generator().manual_seed(6), set(), 0
    for _ in range(40):
        view = context_views(image, generator, geometry=geometry, scale=(1.0, 1.0), stride=8, iou_range=IOU)
        one, two = (unflipped(view[f"image{k}"][None], view[f"flip{k}"][None])[0] for k in (1, 2))
        box1, box2 = (Box(*view[f"box{k}"].tolist()) for k in (1, 2))
        assert torch.equal(inside(one, box1), inside(two, box2))
        assert view["inside"].tolist() == [48, 48]
        flips.add((bool(view["flip1"]), bool(view["flip2"])))
        apart += box1 != box2
    assert len(flips) == 4
    assert apart > 20


def test_context_views_have_fixed_shapes_whatever_the_image() -> None:
    geometry = Geometry(base_size=60, scale=(0.5, 2.0), crop=64)
    generator, insides = torch.Generator().manual_seed(7), []
    for height, width in ((30, 200), (200, 30), (1, 1), (77, 78), (640, 480)):
        for _ in range(8):
            view = context_views(
                torch.full((3, height, width), 9, dtype=torch.uint8),
                generator,
                geometry=geometry,
                scale=(0.8, 2.0),
                stride=8,
                iou_range=IOU,
            )
            shapes = {name: (tuple(each.shape), each.dtype) for name, each in view.items()}
            assert shapes == {
                "image1": ((3, 64, 64), torch.uint8),
                "image2": ((3, 64, 64), torch.uint8),
                "box1": ((4,), torch.int64),
                "box2": ((4,), torch.int64),
                "flip1": ((), torch.bool),
                "flip2": ((), torch.bool),
                "inside": ((2,), torch.int64),
            }
            rows, columns = view["inside"].tolist()
            unflipped1 = unflipped(view["image1"][None], view["flip1"][None])[0]
            assert (unflipped1[:, :rows, :columns] == 9).all()
            assert not (unflipped1[:, rows:] == 9).any()
            assert not (unflipped1[:, :, columns:] == 9).any()
            assert view["box1"][2] <= rows
            assert view["box1"][3] <= columns
            insides.append(max(rows, columns))
    assert min(insides) in range(48, 56)  # long side 0.8 x 60 at the least
    assert max(insides) == 64


def test_views_depend_on_their_generator_alone() -> None:
    image = torch.randint(256, (3, 80, 90), dtype=torch.uint8)
    options = {
        "geometry": Geometry(64, (1.0, 1.0), 32),
        "scale": (0.8, 2.0),
        "stride": 8,
        "iou_range": IOU,
    }
    one = context_views(image, torch.Generator().manual_seed(3), **options)
    torch.rand(5)
    other = context_views(image, torch.Generator().manual_seed(3), **options)
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- resized crops ------------------------------------------------------------------------------------------


def photograph(height: int, width: int) -> Tensor:
    """Return an image (3, H, W) uint8 whose values are twice the rows and twice the columns of its pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((2 * y, 2 * x, torch.zeros_like(y))).to(torch.uint8)


def drawn(count: int, grid: int = 4) -> dict[str, Tensor]:
    """Return views of images that encode their own coordinates."""
    generator = torch.Generator().manual_seed(8)
    image = photograph(96, 120)
    views = [resized_crops(image, generator, crop=32, area=(0.3, 1.0)) for _ in range(count)]
    return {name: torch.stack([each[name] for each in views]) for name in views[0]}


def test_the_cells_of_resized_crops_lie_where_their_pixels_say() -> None:
    views = drawn(40)
    flips = set(zip(views["flip1"].tolist(), views["flip2"].tolist(), strict=True))
    assert len(flips) == 4
    for name in ("1", "2"):
        centres = cell_centres(views[f"box{name}"], views[f"flip{name}"], 4).view(-1, 4, 4, 2)
        seen = views[f"image{name}"][:, :2].float().unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(4, 5)) / 2
        # A pixel's centre lies half a pixel behind its number.
        assert (seen.permute(0, 2, 3, 1) + 0.5 - centres).abs().max() < 0.7


def test_distances_of_cells_by_loops() -> None:
    views, grid = drawn(3), 3
    found = cell_distances(views, grid)
    for image in range(3):
        centres, diagonals = [], []
        for name in ("1", "2"):
            y0, x0, y1, x1 = views[f"box{name}"][image].tolist()
            high, wide = (y1 - y0) / grid, (x1 - x0) / grid
            flip = bool(views[f"flip{name}"][image])
            columns = range(grid - 1, -1, -1) if flip else range(grid)
            centres.append(
                [(y0 + (i + 0.5) * high, x0 + (j + 0.5) * wide) for i in range(grid) for j in columns]
            )
            diagonals.append(math.hypot(high, wide))
        expected = [[math.dist(one, other) / max(diagonals) for other in centres[1]] for one in centres[0]]
        torch.testing.assert_close(found[image], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_the_nearest_cells_of_two_views_show_the_same_place() -> None:
    views, grid = drawn(40), 8
    distance, nearest = cell_distances(views, grid).min(dim=2)
    one, other = (
        views[f"image{name}"][:, :2].float().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5)).flatten(2) / 2
        for name in ("1", "2")
    )
    apart = (one - other.gather(2, nearest[:, None].expand(-1, 2, -1))).norm(dim=1)
    sides = torch.stack(
        [(views[f"box{name}"][:, 2:] - views[f"box{name}"][:, :2]) / grid for name in ("1", "2")]
    )
    diagonal = sides.norm(dim=-1).amax(dim=0)[:, None].expand_as(distance)
    near = distance < 0.7
    assert near.float().mean() > 0.3
    assert (apart[near] <= 0.7 * diagonal[near] + 1).all()
    assert (apart[~near] >= 0.7 * diagonal[~near] - 1).all()


@pytest.mark.parametrize("size", [(96, 120), (1, 1), (300, 2), (2, 300)])
def test_resized_crops_have_their_size_area_and_aspect_where_the_image_allows(size: tuple[int, int]) -> None:
    generator, height, width = torch.Generator().manual_seed(9), *size
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for _ in range(20):
        view = resized_crops(image, generator, crop=24, area=(0.25, 0.5))
        for name in ("1", "2"):
            assert view[f"image{name}"].shape == (3, 24, 24)
            y0, x0, y1, x1 = view[f"box{name}"].tolist()
            assert 0 <= y0 < y1 <= height
            assert 0 <= x0 < x1 <= width
            if size == (96, 120):
                assert 0.23 < (y1 - y0) * (x1 - x0) / (height * width) < 0.52
                assert 0.7 < (x1 - x0) / (y1 - y0) < 1.42


def test_resized_crops_depend_on_their_generator_alone() -> None:
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    one, other = (
        resized_crops(image, torch.Generator().manual_seed(3), crop=16, area=(0.2, 1.0)) for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
