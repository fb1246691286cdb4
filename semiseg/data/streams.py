"""Endless streams of images whose order depends on the seed alone.

Place p of a stream holds image p mod n of a permutation drawn from (seed, epoch), and its crop is drawn from
(seed, stream, p). So any number of workers gives the same stream, and a stream can start at any place.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semiseg.base import distributed
from semiseg.base.errors import EXIT_TRY_AGAIN, UserError
from semiseg.base.parameters import Geometry
from semiseg.base.processes import end_with_parent
from semiseg.data.cache import FORK, SharedCache
from semiseg.data.geometry import mask_of_weak_view, random_scale_crop_flip
from semiseg.data.prepared import PreparedDataset
from semiseg.data.reading import read_image, read_mask, read_size

LABELLED, UNLABELLED = 0, 1

Item = TypeVar("Item")
Sample = tuple[Tensor, Tensor]
View = Callable[[Tensor, torch.Generator], dict[str, Tensor]]


class ReaderDiedError(UserError):
    """A process that reads images was killed; the next start may well succeed."""

    exit_status = EXIT_TRY_AGAIN


class Images:
    """Decode the training images of a dataset and their masks.

    Up to ``cache_mib`` MiB are kept, for this process and those forked from it.
    """

    def __init__(self, dataset: PreparedDataset, cache_mib: int = 0) -> None:
        self._dataset = dataset
        self._cache = None
        if cache_mib:
            ids = dataset.ids("train")
            self._cache = SharedCache([*map(_image_key, ids), *map(_mask_key, ids)], cache_mib)

    def image(self, identifier: str) -> Tensor:
        """Return an image (3, H, W) uint8, channels last, without reading its mask. Do not write to it."""
        path = self._dataset.image_path(identifier)
        pixels = self._kept(_image_key(identifier), lambda: read_image(path).permute(1, 2, 0))
        return pixels.permute(2, 0, 1)

    def pair(self, identifier: str) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) uint8 and its mask (H, W) uint8. Do not write to them."""
        image = self.image(identifier)
        return image, self.mask(identifier, image)

    def mask(self, identifier: str, image: Tensor | None = None) -> Tensor:
        """Return the mask (H, W) uint8 of an image, which need not be given. Do not write to it."""
        path, classes = self._dataset.mask_path(identifier), len(self._dataset.classes)
        return self._kept(_mask_key(identifier), lambda: read_mask(path, image, classes))

    def _kept(self, key: str, read: Callable[[], Tensor]) -> Tensor:
        return read() if self._cache is None else self._cache.get(key, read)


def _image_key(identifier: str) -> str:
    return f"image {identifier}"


def _mask_key(identifier: str) -> str:
    return f"mask {identifier}"


class Stream(Dataset[Item]):
    """A dataset without an end: item p is ``read`` of the p-th id, with a generator of its own."""

    def __init__(
        self,
        ids: Sequence[str],
        seed: int,
        stream: int,
        read: Callable[[str, torch.Generator], Item],
    ) -> None:
        self.ids, self.seed, self.stream, self._read = tuple(ids), seed, stream, read

    def __getitem__(self, place: int) -> Item:
        epoch, index = divmod(place, len(self.ids))
        order = _permutation(len(self.ids), self.seed, self.stream, epoch)
        generator = torch.Generator().manual_seed(_number(self.seed, self.stream, 1, place))
        return self._read(self.ids[order[index]], generator)


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, stream: int, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(_number(seed, stream, 0, epoch))
    return tuple(torch.randperm(length, generator=generator).tolist())


def _number(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


class _Labelled:
    def __init__(self, images: Images, geometry: Geometry) -> None:
        self._images, self._geometry = images, geometry

    def __call__(self, identifier: str, generator: torch.Generator) -> Sample:
        image, mask = self._images.pair(identifier)
        return random_scale_crop_flip(image, mask, self._geometry, generator)


class _Truth:
    def __init__(self, images: Images, geometry: Geometry) -> None:
        self._images, self._geometry = images, geometry

    def __call__(self, identifier: str, generator: torch.Generator) -> Tensor:
        return mask_of_weak_view(self._images.mask(identifier), self._geometry, generator)


class _Unlabelled:
    def __init__(self, images: Images, view: View) -> None:
        self._images, self._view = images, view

    def __call__(self, identifier: str, generator: torch.Generator) -> dict[str, Tensor]:
        return self._view(self._images.image(identifier), generator)


def labelled_batches(
    images: Images,
    ids: Sequence[str],
    geometry: Geometry,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    workers: int,
    parts: int = 1,
) -> Iterator[Sample]:
    """Yield the batches of steps [first_step, last_step): images (B, 3, c, c), masks (B, c, c), both uint8.

    Each process gets its own block of every batch or, if steps are trained in ``parts``, of each part, in
    order; ``batch_size`` is a multiple of the processes times ``parts``.
    """
    stream = Stream(ids, seed, LABELLED, _Labelled(images, geometry))
    return _batches(stream, batch_size, first_step, last_step, workers, parts)


def unlabelled_batches(
    images: Images,
    ids: Sequence[str],
    view: View,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    workers: int,
    parts: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of steps [first_step, last_step): stacked outputs of ``view``, in blocks as above."""
    stream = Stream(ids, seed, UNLABELLED, _Unlabelled(images, view))
    return _batches(stream, batch_size, first_step, last_step, workers, parts)


def truth_batches(
    images: Images,
    ids: Sequence[str],
    geometry: Geometry,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    workers: int,
    parts: int = 1,
) -> Iterator[Tensor]:
    """Masks (B, c, c) uint8 of the images that ``unlabelled_batches`` yields as random_scale_crop_flip."""
    stream = Stream(ids, seed, UNLABELLED, _Truth(images, geometry))
    return _batches(stream, batch_size, first_step, last_step, workers, parts)


def _batches(
    stream: Stream[Any], batch_size: int, first_step: int, last_step: int, workers: int, parts: int
) -> Iterator[Any]:
    places = np.arange(first_step * batch_size, last_step * batch_size)
    share = batch_size // distributed.size()
    blocks = places.reshape(-1, distributed.size(), share // parts)
    loader = DataLoader(
        stream,
        share,
        sampler=blocks[:, distributed.rank()].ravel().tolist(),
        num_workers=workers,
        multiprocessing_context=FORK if workers else None,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_serve,
    )
    return _with_plain_errors(loader)


def by_size(dataset: PreparedDataset, ids: Iterable[str]) -> list[str]:
    """Return ids so that images of one size are neighbours, which are then scored in one batch."""
    return sorted(ids, key=lambda identifier: read_size(dataset.image_path(identifier)))


def evaluation_images(
    dataset: PreparedDataset, ids: Sequence[str], workers: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (id, image (3, H, W) uint8, mask (H, W) uint8) for each id, in order."""
    loader = DataLoader(
        _Evaluation(dataset, ids),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=FORK if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_serve,
    )
    return _with_plain_errors(loader)


class _Evaluation(Dataset[tuple[str, Tensor, Tensor]]):
    def __init__(self, dataset: PreparedDataset, ids: Sequence[str]) -> None:
        self._dataset, self._ids = dataset, tuple(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        identifier = self._ids[index]
        image = read_image(self._dataset.image_path(identifier))
        mask = read_mask(self._dataset.mask_path(identifier), image, len(self._dataset.classes))
        return identifier, image, mask


def _serve(worker: int) -> None:
    """Ignore ctrl-C, which the run handles, and end with the run, whose locks a reader would keep alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)  # torchrun sends SIGTERM to the group, but the run still has a step to finish
    end_with_parent(signal.SIGKILL)


def _with_plain_errors(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the items of ``loader``; raise a worker's error without the traceback around its message.

    Raises ReaderDiedError between two items, never while one is in use.
    """
    try:
        items = iter(loader)
        if loader.num_workers:
            # torch would raise from this signal's handler, wherever the run is at that moment; asking for
            # the next item finds a dead worker as well.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from items
    except UserError as error:
        # A UserError shows the line feeds of the worker's traceback as escapes.
        message = str(error).rpartition(f"{UserError.__module__}.UserError: ")[2]
        raise UserError(message.removesuffix(r"\n")) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The latter two if a batch has yet to be fetched from the worker that read it.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ReaderDiedError(
            "a process that reads images was killed (is memory short, or /dev/shm?); give the same command "
            "again to go on, with fewer workers in the protocol if it recurs"
        ) from None
