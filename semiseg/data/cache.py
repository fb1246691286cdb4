"""A cache of decoded images in memory that reading processes share."""

import math
import mmap
from collections.abc import Callable, Iterable
from multiprocessing import get_context

import torch
from torch import Tensor

from semiseg.base.errors import UserError

# Anonymous memory: forked processes inherit it, and it is freed when the last one ends, however it ends.
FORK = get_context("fork")
MIB = 2**20  # bytes
DIMENSIONS = 3  # dimensions of an image; a mask leaves the last at -1
NOTHING, BEING_WRITTEN = -1, -2  # instead of the offset of a key's bytes
PATIENCE = 1.0  # seconds


class SharedCache:
    """uint8 tensors of up to three dimensions by ``keys``, together at most ``mebibytes`` MiB.

    Nothing is evicted: an epoch reads every image before it reads one again, so evicting the oldest would
    remove the image that is needed next. Memory is taken only as it fills. Raises UserError if the machine
    refuses so much.
    """

    def __init__(self, keys: Iterable[str], mebibytes: int) -> None:
        self._rows = {key: row for row, key in enumerate(keys)}
        try:
            self._bytes = _shared(mebibytes * MIB)
        except OSError as error:
            raise UserError(
                f"params.yaml: protocols: image_cache_mib: {mebibytes} MiB are not available here "
                f"({error.strerror}); lower it"
            ) from None
        # A row for each key: the offset of its bytes, then its sizes.
        self._table = _shared(len(self._rows) * (1 + DIMENSIONS) * 8).view(torch.int64)
        self._table = self._table.view(len(self._rows), 1 + DIMENSIONS).fill_(NOTHING)
        self._used = _shared(8).view(torch.int64)
        self.lock = FORK.Lock()  # held while a place is reserved

    def get(self, key: str, read: Callable[[], Tensor]) -> Tensor:
        """Return the tensor kept for ``key``; else the one that ``read`` returns, kept if there is room.

        A kept tensor is shared: it must not be written to.
        """
        row = self._table[self._rows[key]]
        begin, *sizes = row.tolist()
        if begin >= 0:
            shape = [size for size in sizes if size >= 0]
            return self._bytes[begin : begin + math.prod(shape)].view(shape)
        value = read()
        place = self._reserve(row, value.numel())
        if place is not None:
            self._bytes[place : place + value.numel()] = value.flatten()
            row[1 : 1 + value.ndim] = torch.tensor(value.shape)
            row[0] = place  # last, so that a process which sees it finds the rest
        return value

    def _reserve(self, row: Tensor, size: int) -> int | None:
        """Reserve ``size`` bytes for ``row`` and return their offset; None if full or if another writes them.

        Nothing is copied under the lock, which is held briefly: a process may be killed at any moment.
        """
        if not self.lock.acquire(timeout=PATIENCE):
            return None
        try:
            place = int(self._used)
            if int(row[0]) != NOTHING or place + size > len(self._bytes):
                return None
            row[0] = BEING_WRITTEN
            self._used += size
            return place
        finally:
            self.lock.release()


def _shared(size: int) -> Tensor:
    """Return ``size`` bytes of zeros that forked processes share."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
