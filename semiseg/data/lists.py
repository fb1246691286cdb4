"""Lists of labelled images that a paper's authors published, fetched as they are and read without trust.

A file is fetched at the commit that params.yaml names, into data/archives/<family>/, where a user may have
put it already, and is the one whose digest stands there.
"""

import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from semiseg.base.errors import UserError
from semiseg.base.parameters import Download, Family
from semiseg.data import archives, splits
from semiseg.data.splits import Split, read_ids

# DCC's folders, by the source of a dataset.
DCC_FOLDERS = {"voc": "voc_splits", "cityscapes": "city_splits"}
# What numpy's arrays of numbers need to be put together again, and nothing else.
ARRAY = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}

Fetch = Callable[[str], Path]


def write(
    name: str, seed: int, family: str, published: Family, source: str, ids: Iterable[str], count: int
) -> Split:
    """Write split ``name`` for ``seed`` from list number ``seed`` of ``family``.

    ``source``: of the dataset, whose training ``ids`` these are. Images that the list does not label are
    unlabelled. Raises UserError where the family has no such list, where it cannot be fetched or read, and
    for a list that does not go with the dataset.
    """
    key = f"params.yaml: splits: {name}: family '{family}'"
    if family not in FAMILIES:
        raise UserError(f"{key}: no lists are read by that name; there are {', '.join(FAMILIES)}")
    used = []

    def fetch(path: str) -> Path:
        if path not in published.sha256:
            known = ", ".join(published.sha256)
            raise UserError(f"{key} has no {path} (seed {seed}, {count} images); it has {known}")
        download = Download((f"{published.address}/{path}",), sha256=published.sha256[path])
        used.append(f"{path} {published.sha256[path]}")
        return archives.obtain(f"{family}/{path}", download)

    order = FAMILIES[family](fetch, source, seed, count)
    labelled, known = order[:count], set(ids)
    if len(set(labelled)) != count:
        raise UserError(f"{key}: its list has {len(set(labelled))} images, {count} are asked for")
    strangers = [each for each in order if each not in known]
    if strangers:
        raise UserError(f"{key}: {strangers[0]} is no training image of the dataset; prepare it again")
    rest = dict.fromkeys([*order[count:], *sorted(known)])
    unlabelled = tuple(each for each in rest if each not in set(labelled))
    origin = f"family: {family}; seed: {seed}; from: {', '.join(used)}"
    return splits.write_lists(name, seed, origin, labelled, unlabelled)


def dcc(fetch: Fetch, source: str, seed: int, count: int) -> tuple[str, ...]:
    """DCC: a file for each list and count, with a line "/JPEGImages/<id>.jpg /Seg…/<id>.png" an image."""
    folder = DCC_FOLDERS.get(source, source)
    lines = read_ids(fetch(f"{folder}{seed}/{count}_train_supervised.txt"))
    return tuple(PurePosixPath(line.split()[0]).stem.removesuffix("_leftImg8bit") for line in lines)


def cmb(fetch: Fetch, source: str, seed: int, count: int) -> tuple[str, ...]:
    """CMB: a permutation of the lines of train_aug.txt; the first ``count`` are labelled. VOC only."""
    if source != "voc":
        raise UserError(f"CMB's lists for {source} index an unsorted folder and cannot be read; draw them")
    ids = read_ids(fetch("train_aug.txt"))
    path = fetch(f"split_{seed}.pkl")
    order = read_permutation(path)
    if len(order) != len(ids):
        raise UserError(f"{path}: orders {len(order)} images, train_aug.txt has {len(ids)}")
    return tuple(ids[place] for place in order)


FAMILIES = {"dcc": dcc, "cmb": cmb}


def read_permutation(path: Path) -> list[int]:
    """A pickled numpy array that is a permutation of 0 … n-1; no code of the pickle's is run.

    Raises UserError for a pickle that asks for anything but an array of numbers.
    """
    try:
        array = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a pickle that is broken or hostile may make the machine raise anything
        raise UserError(f"{path}: not a pickled array of numbers ({' '.join(str(error).split())})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: not a pickled array of whole numbers")
    if not np.array_equal(np.sort(array), np.arange(len(array))):
        raise UserError(f"{path}: not a permutation of 0 to {len(array) - 1}")
    return [int(place) for place in array]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ARRAY[module, name]
