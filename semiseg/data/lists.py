"""Fetch the lists of labelled images that authors published, and read them without trust.

A file is fetched at a commit into data/archives/<family>/, where a user may have put it already, and is used
only if it has the digest in families.py. Seed k takes list k of its family.
"""

import io
import pickle
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from semiseg.base.errors import UserError
from semiseg.data import archives, splits
from semiseg.data.archives import Download
from semiseg.data.families import FAMILIES, File
from semiseg.data.splits import Split, read_ids, read_lines

# The names that numpy needs to rebuild arrays of numbers, and nothing else.
ARRAY = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}


def write(name: str, seed: int, family: str, source: str, ids: Iterable[str], count: int) -> Split:
    """Write split ``name`` for ``seed`` from list number ``seed`` of ``family``.

    ``ids`` are the training images of a dataset with this ``source``; those that the list does not label are
    unlabelled. Raises UserError if the family has no such list, if it cannot be fetched or read, and for a
    list that does not fit the dataset.
    """
    key = f"params.yaml: {name}: lists '{family}'"
    if family not in FAMILIES:
        raise UserError(f"{key}: there is no such family; there are {', '.join(FAMILIES)}")
    published = FAMILIES[family]
    file = published.lists.get((source, count, seed))
    if file is None:
        there = ", ".join(f"{number} of {size} for {where}" for where, size, number in published.lists)
        raise UserError(f"{key}: there is no list {seed} of {count} images for {source}; there are {there}")
    if published.names is None:
        used, order = file.label, listed(_obtain(family, file))
    else:
        used = f"{published.names.label}, {file.label}"
        order = _permuted(_obtain(family, published.names), _obtain(family, file))
    labelled, known = order[:count], set(ids)
    chosen = set(labelled)
    if len(chosen) != count:
        raise UserError(f"{key}: its list has {len(chosen)} images, {count} are asked for")
    strangers = [each for each in order if each not in known]
    if strangers:
        raise UserError(f"{key}: {strangers[0]} is no training image of the dataset")
    rest = dict.fromkeys([*order[count:], *sorted(known)])
    unlabelled = tuple(each for each in rest if each not in chosen)
    origin = f"family: {family}; seed: {seed}; from: {used}"
    return splits.write_lists(name, seed, origin, labelled, unlabelled)


def _obtain(family: str, file: File) -> Path:
    address = f"{FAMILIES[family].address}/{file.path}"
    return archives.obtain(f"{family}/{file.path}", Download((address,), sha256=file.sha256))


def listed(path: Path) -> tuple[str, ...]:
    """Read the ids of a published list, whose lines are ids, paths, or pairs of paths.

    The id is the first path's file name without suffix, for Cityscapes without ``_leftImg8bit``.
    """
    first = (line.split()[0] for line in read_lines(path))
    return tuple(PurePosixPath(each).stem.removesuffix("_leftImg8bit") for each in first)


def _permuted(names: Path, permutation: Path) -> tuple[str, ...]:
    """Read a list in the order of a pickled permutation of its lines."""
    ids, order = read_ids(names), read_permutation(permutation)
    if len(order) != len(ids):
        raise UserError(f"{permutation}: orders {len(order)} images, {names} has {len(ids)}")
    return tuple(ids[place] for place in order)


def read_permutation(path: Path) -> list[int]:
    """Read a pickled numpy array that is a permutation of 0 … n-1; no code of the pickle is run.

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
