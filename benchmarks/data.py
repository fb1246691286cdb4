"""Measure images per second: decoded, augmented, delivered in batches, beside a plain dataset.

python -m benchmarks.data                     drawn images of VOC's size, in a temporary folder
python -m benchmarks.data --dataset voc       a prepared dataset of params.yaml
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from semiseg.base import parameters
from semiseg.base.parameters import Geometry
from semiseg.data import streams
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.data.palette import save_mask
from semiseg.data.prepared import VOC, PreparedDataset, open_dataset
from semiseg.data.reading import read_image, read_mask

BATCH = 8


class Plain(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The plain dataset: PIL opens, torchvision resizes, crops and flips; nothing is kept."""

    def __init__(self, dataset: PreparedDataset, ids: list[str], geometry: Geometry) -> None:
        self._dataset, self._ids, self._geometry = dataset, ids, geometry
        self._crop = v2.RandomCrop(
            geometry.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}
        )
        self._flip = v2.RandomHorizontalFlip()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        identifier = self._ids[index]
        with Image.open(self._dataset.image_path(identifier)) as file:
            image = tv_tensors.Image(v2.functional.pil_to_tensor(file.convert("RGB")))
        with Image.open(self._dataset.mask_path(identifier)) as file:
            mask = tv_tensors.Mask(torch.from_numpy(np.array(file)))
        low, high = self._geometry.scale
        side = self._geometry.base_size * float(torch.empty(1).uniform_(low, high))
        ratio = side / max(image.shape[-2:])
        size = [max(1, round(length * ratio)) for length in image.shape[-2:]]
        image, mask = v2.functional.resize(image, size), v2.functional.resize(mask, size)
        image, mask = self._flip(*self._crop(image, mask))
        return image, mask


def drawn(folder: Path, images: int) -> PreparedDataset:
    """Draw ``images`` stand-ins for JPEG photographs of 500x375: smooth noise, with masks of blocks."""
    for part in (VOC.images, VOC.masks):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for place in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(pixels + generator.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / VOC.images / f"{place}.jpg", quality=92)
        blocks = np.kron(generator.integers(0, 21, (15, 20)), np.ones((25, 25), dtype=np.int64))
        save_mask(blocks.astype(np.uint8), folder / VOC.masks / f"{place}.png")
    (folder / VOC.lists).mkdir(parents=True)
    (folder / VOC.lists / "train.txt").write_text("".join(f"{place}\n" for place in range(images)))
    return PreparedDataset("drawn", folder, tuple(map(str, range(21))), VOC, "")


def rate(work: Callable[[], int]) -> float:
    """Return images per second of ``work``, which returns their number."""
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def decoded(dataset: PreparedDataset, ids: list[str]) -> int:
    for each in ids:
        read_mask(dataset.mask_path(each), read_image(dataset.image_path(each)), len(dataset.classes))
    return len(ids)


def augmented(dataset: PreparedDataset, geometry: Geometry, opened: tuple[str, ...], ids: list[str]) -> int:
    """Crop an image for each of ``ids``, from the decoded ones of ``opened`` in turn."""
    generator = torch.Generator().manual_seed(0)
    pairs = _pairs(dataset, opened)
    for place in range(len(ids)):
        random_scale_crop_flip(*pairs[place % len(pairs)], geometry, generator)
    return len(ids)


@cache
def _pairs(dataset: PreparedDataset, ids: tuple[str, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = []
    for each in ids:
        image = read_image(dataset.image_path(each))
        pairs.append((image, read_mask(dataset.mask_path(each), image, len(dataset.classes))))
    return pairs


def shared_out(work: Callable[[list[str]], int], ids: list[str], workers: int) -> tuple[float, float]:
    """Return images per second of two passes of ``work`` over ``ids``, dealt to ``workers`` processes."""
    shares = [ids[place::workers] for place in range(workers)]
    with get_context("fork").Pool(workers) as pool:
        first, second = (rate(lambda: sum(pool.map(work, shares, chunksize=1))) for _ in range(2))
    return first, second


def delivered(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], epoch: int) -> tuple[float, float]:
    """Return images per second of two passes of ``epoch`` batches; the first includes the workers' start."""
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(epoch):
            next(batches)
        rates.append(epoch * BATCH / (time.perf_counter() - start))
    return rates[0], rates[1]


def endless(
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader


def measure(
    dataset: PreparedDataset,
    ids: list[str],
    geometry: Geometry,
    workers: list[int],
    cache_mib: int,
    repeats: int,
) -> None:
    """Print the table: the median of ``repeats`` rates of each case."""
    print(f"{dataset.name}: {len(ids)} images, crops of {geometry.crop}, {os.cpu_count()} cores")
    print(f"kept: in at most {cache_mib} MiB\n")
    print("| step | workers | images/s, first pass | images/s, second pass |")
    print("| --- | ---: | ---: | ---: |")
    opened = tuple(ids[:16])
    _pairs(dataset, opened)  # before processes are forked, which then inherit them
    for number in workers:
        cases = {
            "decoded": partial(shared_out, partial(decoded, dataset), ids, number),
            "augmented": partial(shared_out, partial(augmented, dataset, geometry, opened), ids, number),
            "delivered": partial(ours, dataset, ids, geometry, number, 0),
            "delivered, kept": partial(ours, dataset, ids, geometry, number, cache_mib),
            "delivered, plain": partial(plain, dataset, ids, geometry, number),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(repeats):  # in turn, so that a slower machine slows all cases
            for name, case in cases.items():
                rates[name].append(case())
        for name, passes in rates.items():
            first, second = (median(each) for each in zip(*passes, strict=True))
            print(f"| {name} | {number} | {first:.0f} | {second:.0f} |", flush=True)


def ours(
    dataset: PreparedDataset, ids: list[str], geometry: Geometry, workers: int, cache_mib: int
) -> tuple[float, float]:
    epoch = len(ids) // BATCH
    images = streams.Images(dataset, cache_mib)
    return delivered(streams.labelled_batches(images, ids, geometry, BATCH, 0, 0, 2 * epoch, workers), epoch)


def plain(dataset: PreparedDataset, ids: list[str], geometry: Geometry, workers: int) -> tuple[float, float]:
    loader = DataLoader(
        Plain(dataset, ids, geometry), BATCH, shuffle=True, drop_last=True, num_workers=workers
    )
    return delivered(endless(loader), len(ids) // BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", help="a prepared dataset; else images are drawn")
    parser.add_argument("--protocol", default="voc", help="whose scale and crop count")
    parser.add_argument("--images", type=int, default=512, help="at most so many")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--cache-mib", type=int, default=1024, help="memory for decoded images")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    geometry = parameters.load().protocols[arguments.protocol].geometry
    with tempfile.TemporaryDirectory() as folder:
        if arguments.dataset is None:
            dataset = drawn(Path(folder), arguments.images)
        else:
            datasets = parameters.load().datasets
            dataset = open_dataset(
                arguments.dataset, parameters.look_up(datasets, arguments.dataset, "datasets")
            )
        ids = [each for each in dataset.ids("train") if dataset.mask_path(each).is_file()]
        ids = ids[: arguments.images]
        measure(dataset, ids, geometry, arguments.workers, arguments.cache_mib, arguments.repeats)


if __name__ == "__main__":
    main()
