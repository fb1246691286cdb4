"""Decoded images in memory that the processes which read them share."""

import math
import mmap
from collections.abc import Callable, Iterable
from multiprocessing import get_context

import torch
from torch import Tensor

from semiseg.base.errors import UserError

# Memory without a name: a forked process inherits it, and it goes with the last one, however that ends.
FORK = get_context("fork")
MIB = 2**20  # bytes
DIMENSIONS = 3  # of an image; a mask leaves the last at -1
NOTHING, BEING_WRITTEN = -1, -2  # in place of where a key's bytes begin
PATIENCE = 1.0  # seconds


class SharedCache:
    """uint8 tensors of up to three dimensions by ``keys``, together at most ``mebibytes`` MiB.

    What came first stays: an epoch asks for every image before it asks for one again, so a cache that threw
    the oldest out would throw out what is asked for next. Memory that nothing was put into is not taken.
    Raises UserError where the machine refuses so much.
    """

    def __init__(self, keys: Iterable[str], mebibytes: int) -> None:
        self._rows = {key: row for row, key in enumerate(keys)}
        try:
            self._bytes = _shared(mebibytes * MIB)
        except OSError as error:
            raise UserError(
                f"params.yaml: protocols: image_cache_mib: {mebibytes} MiB are not to be had here "
                f"({error.strerror}); lower it"
            ) from None
        # Of each key: where its bytes begin, and its sizes.
        self._table = _shared(len(self._rows) * (1 + DIMENSIONS) * 8).view(torch.int64)
        self._table = self._table.view(len(self._rows), 1 + DIMENSIONS).fill_(NOTHING)
        self._used = _shared(8).view(torch.int64)
        self._lock = FORK.Lock()

    def get(self, key: str, read: Callable[[], Tensor]) -> Tensor:
        """What is kept of ``key``, else what ``read`` returns, which is kept where there is room for it.

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
            row[0] = place  # last: whoever sees it finds the rest
        return value

    def _reserve(self, row: Tensor, size: int) -> int | None:
        """Where the ``size`` bytes of ``row`` go; None without room, or where another process writes them.

        Nothing is copied under the lock, and nobody waits long for it: a process may be killed at any moment.
        """
        if not self._lock.acquire(timeout=PATIENCE):
            return None
        try:
            place = int(self._used)
            if int(row[0]) != NOTHING or place + size > len(self._bytes):
                return None
            row[0] = BEING_WRITTEN
            self._used += size
            return place
        finally:
            self._lock.release()


def _shared(size: int) -> Tensor:
    """``size`` bytes of zeros that forked processes share."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
