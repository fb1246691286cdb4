import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE
from semiseg.data import cache, streams
from semiseg.data.prepared import PreparedDataset, open_dataset
from semiseg.methods import common

GEOMETRY = parameters.Geometry(48, (0.75, 1.5), 32)


def mini() -> PreparedDataset:
    return open_dataset("mini", parameters.load().datasets["mini"])


def name_and_draw(identifier: str, generator: torch.Generator) -> tuple[str, float]:
    return identifier, float(torch.rand((), generator=generator))


def weak_view(image: Tensor, generator: torch.Generator, size: int) -> dict[str, Tensor]:
    return {"weak": image[:, :size, :size], "draw": torch.rand(3, generator=generator)}


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    ids = [f"{number:02d}" for number in range(12)]
    stream = streams.Stream(ids, 5, streams.LABELLED, name_and_draw)
    epochs = [[stream[epoch * 12 + place][0] for place in range(12)] for epoch in range(4)]
    assert all(sorted(epoch) == ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    draws = [stream[place][1] for place in range(48)]
    assert len(set(draws)) == 48


@pytest.mark.parametrize("parts", [1, 2])
def test_each_part_of_a_batch_holds_the_same_images_on_any_number_of_processes(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    dataset = mini()
    arguments = dataset.ids("train"), GEOMETRY, 8, 0, 0, 3, 0, parts

    def own() -> list[tuple[Tensor, ...]]:
        """Return this process's images of every step, part by part."""
        batches = streams.labelled_batches(streams.Images(dataset), *arguments)
        return [images.chunk(parts) for images, _ in batches]

    whole = own()
    monkeypatch.setattr(streams.distributed, "size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(streams.distributed, "rank", lambda rank=rank: rank)
        shares.append(own())
    for one, first, second in zip(whole, *shares, strict=True):
        for part, *halves in zip(one, first, second, strict=True):
            assert torch.equal(part, torch.cat(halves))


def test_seeds_and_streams_differ_and_repeat() -> None:
    ids = [f"{number:02d}" for number in range(12)]

    def items(seed: int, stream: int) -> tuple[tuple[str, float], ...]:
        each = streams.Stream(ids, seed, stream, name_and_draw)
        return tuple(each[place] for place in range(30))

    assert items(0, streams.LABELLED) == items(0, streams.LABELLED)
    assert len({items(0, streams.LABELLED), items(1, streams.LABELLED), items(0, streams.UNLABELLED)}) == 3


def test_labelled_batches_do_not_depend_on_workers_or_on_where_they_start(mini_project: Path) -> None:
    dataset = mini()
    ids = dataset.ids("train")[:5]  # a batch of 4 crosses the ends of epochs

    def batches(first: int, workers: int) -> list[tuple[Tensor, Tensor]]:
        return list(streams.labelled_batches(streams.Images(dataset), ids, GEOMETRY, 4, 3, first, 6, workers))

    whole = batches(0, 0)
    assert len(whole) == 6
    for images, masks in whole:
        assert (images.shape, masks.shape) == ((4, 3, 32, 32), (4, 32, 32))
        assert images.dtype == masks.dtype == torch.uint8
    for first, workers in ((0, 2), (4, 0), (4, 1)):
        rest = batches(first, workers)
        assert len(rest) == 6 - first
        for (images, masks), (same_images, same_masks) in zip(whole[first:], rest, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(masks, same_masks)


def test_unlabelled_batches_stack_what_the_view_returns_and_read_no_mask(mini_project: Path) -> None:
    dataset = mini()
    for mask in Path("data/mini/SegmentationClass").iterdir():
        mask.unlink()
    view = partial(weak_view, size=16)
    ids = dataset.ids("train")
    whole = list(streams.unlabelled_batches(streams.Images(dataset), ids, view, 2, 0, 0, 5, 0))
    assert [batch["weak"].shape for batch in whole] == [(2, 3, 16, 16)] * 5
    by_workers = list(streams.unlabelled_batches(streams.Images(dataset), ids, view, 2, 0, 0, 5, 2))
    for batch, same in zip(whole, by_workers, strict=True):
        assert batch.keys() == same.keys() == {"weak", "draw"}
        assert all(torch.equal(batch[name], same[name]) for name in batch)


class Masks(streams.Images):
    """Stands in for Images: every channel of an image is its mask."""

    def __init__(self, dataset: PreparedDataset) -> None:
        super().__init__(dataset)
        self.real = streams.Images(dataset)

    def image(self, identifier: str) -> Tensor:
        return self.real.pair(identifier)[1].expand(3, -1, -1).contiguous()

    def pair(self, identifier: str) -> tuple[Tensor, Tensor]:
        image = self.image(identifier)
        return image, image[0]


@pytest.mark.parametrize("crop", [32, 64])  # of images of 48 pixels, which scale one leaves unblurred
def test_the_truth_is_the_mask_of_the_weak_view(mini_project: Path, crop: int) -> None:
    dataset = mini()
    images, ids = Masks(dataset), dataset.ids("train")
    geometry = parameters.Geometry(48, (1.0, 1.0), crop)
    arguments = 4, 0, 1, 5, 0
    views = streams.unlabelled_batches(images, ids, common.weak_view(geometry), *arguments)
    truths = streams.truth_batches(images, ids, geometry, *arguments)
    for view, truth in zip(views, truths, strict=True):
        inside = view["mask"] != IGNORE
        assert (truth[~inside] == IGNORE).all()
        assert torch.equal(view["image"][:, 0][inside], truth[inside])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_evaluated_in_order_and_whole(mini_project: Path, workers: int) -> None:
    dataset = mini()
    ids = dataset.ids("train")
    seen = list(streams.evaluation_images(dataset, ids, workers))
    assert tuple(name for name, _, _ in seen) == ids
    assert all(image.shape == (3, 48, 48) and mask.shape == (48, 48) for _, image, mask in seen)
    assert {value for _, _, mask in seen for value in mask.unique().tolist()} <= {0, 1, 2, 255}


def test_images_of_one_size_become_neighbours(mini_project: Path) -> None:
    dataset = mini()
    ids = dataset.ids("train")
    for identifier in ids[::2]:
        Image.new("RGB", (48, 40)).save(dataset.image_path(identifier), "PNG")
    assert streams.by_size(dataset, ids) == [*ids[::2], *ids[1::2]]
    dataset.image_path(ids[0]).write_bytes(b"no image")
    with pytest.raises(UserError, match=f"^{re.escape(str(dataset.image_path(ids[0])))}: unreadable image"):
        streams.by_size(dataset, ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line_by_any_worker(mini_project: Path, workers: int) -> None:
    dataset = mini()
    broken = dataset.image_path(dataset.ids("train")[3])
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError) as refusal:
        list(
            streams.labelled_batches(
                streams.Images(dataset), dataset.ids("train"), GEOMETRY, 2, 0, 0, 4, workers
            )
        )
    assert str(refusal.value).startswith(f"{broken}: unreadable image (")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_mib", [1, 64])
def test_batches_are_the_same_with_and_without_a_cache(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch, workers: int, cache_mib: int
) -> None:
    dataset = mini()
    monkeypatch.setattr(
        cache, "MIB", 20_000
    )  # of 8 images of 48 x 48 and 4 masks: 1 "MiB" holds some, 64 all
    ids = dataset.ids("train")

    def batches(images: streams.Images) -> Iterator[Tensor]:
        for both in streams.labelled_batches(images, ids[:4], GEOMETRY, 4, 3, 0, 6, workers):
            yield from both
        for views in streams.unlabelled_batches(
            images, ids, partial(weak_view, size=16), 4, 3, 0, 6, workers
        ):
            yield from views.values()

    plain, kept = streams.Images(dataset), streams.Images(dataset, cache_mib)
    for _ in range(2):  # the second time from the first one's cache
        for one, other in zip(batches(plain), batches(kept), strict=True):
            assert torch.equal(one, other)


def test_a_reader_that_dies_with_a_batch_to_hand_over_is_named(mini_project: Path) -> None:
    dataset = open_dataset("mini", parameters.load().datasets["mini"])
    images = streams.evaluation_images(dataset, dataset.ids("val"), workers=1)
    next(images)
    (reader,) = multiprocessing.active_children()
    time.sleep(0.5)  # by then it has read the next one
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(streams.ReaderDiedError, match="a process that reads images was killed"):
        next(images)
