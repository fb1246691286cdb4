"""A cache keeps tensors, in one process and across several."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.data import cache
from semiseg.data.cache import FORK, SharedCache

SHAPES = {"a": (3, 10, 10), "b": (3, 5, 20), "c": (10, 20), "d": (100,)}  # 300, 300, 200 and 100 bytes


class Source:
    """Makes the value of a key and counts how often."""

    def __init__(self) -> None:
        self.read = Counter[str]()

    def value(self, key: str) -> Tensor:
        size = math.prod(SHAPES[key])
        return (torch.arange(size) * ord(key) % 256).to(torch.uint8).view(SHAPES[key])

    def __call__(self, kept: SharedCache, key: str) -> Tensor:
        def read() -> Tensor:
            self.read[key] += 1
            return self.value(key)

        return kept.get(key, read)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIB", 1)


def test_what_came_first_is_kept_up_to_a_number_of_bytes() -> None:
    kept, source = SharedCache(SHAPES, 700), Source()
    for key in ("a", "b", "c", "d", "a", "b", "c", "d", "d"):
        assert torch.equal(source(kept, key), source.value(key))
    assert source.read == {"a": 1, "b": 1, "c": 2, "d": 1}  # c had no room, d found the last 100 bytes


def test_other_processes_find_what_one_has_read() -> None:
    kept, source = SharedCache(SHAPES, 1000), Source()

    def read_all() -> None:
        for key in SHAPES:
            source(kept, key)

    worker = FORK.Process(target=read_all)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    for key in SHAPES:
        assert torch.equal(source(kept, key), source.value(key))
    assert source.read == {}


def test_processes_that_read_at_once_keep_each_value_once() -> None:
    keys = [f"{key}{place}" for key in SHAPES for place in range(20)]  # 18,000 bytes of values
    kept, source = SharedCache(keys, 18_000), Source()

    def read_all() -> None:
        for key in keys:
            assert torch.equal(kept.get(key, partial(source.value, key[0])), source.value(key[0]))

    workers = [FORK.Process(target=read_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    for key in keys:  # all of them fit, so none was kept twice
        assert torch.equal(kept.get(key, _not_kept), source.value(key[0]))


def test_more_than_the_machine_has_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIB", 2**20)
    with pytest.raises(UserError, match=rf"image_cache_mib: {2**30} MiB are not available .*; lower it$"):
        SharedCache(SHAPES, 2**30)


def _not_kept() -> Tensor:
    raise AssertionError


def test_a_process_that_died_with_the_lock_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 0.01)
    kept, source = SharedCache(SHAPES, 1000), Source()
    source(kept, "a")
    worker = FORK.Process(target=kept.lock.acquire)
    worker.start()
    worker.join()
    for key in ("a", "b", "b"):
        assert torch.equal(source(kept, key), source.value(key))
    assert source.read == {"a": 1, "b": 2}
