"""PASCAL VOC 2012 (Everingham et al.) with the masks of SBD (Hariharan et al., 2011).

Made from the two releases alone: VOC's own masks where VOC has one, SBD's class masks elsewhere. The training
list is VOC's and SBD's together, without VOC's validation list, which is the one that is scored.
"""

import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import Dataset, Download
from semiseg.data import archives
from semiseg.data.palette import save_mask
from semiseg.data.prepared import VOC, check_published, write_manifest
from semiseg.data.splits import read_ids

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
SBD_ARCHIVE = "benchmark.tgz"
REVISION = 1  # raised when the same archives come to be prepared into other files
# What scipy raises for a file that is no MATLAB file, is cut off, or holds something else.
NO_MASK = (OSError, ValueError, TypeError, KeyError, IndexError, zlib.error, MatReadError)


@dataclass(frozen=True)
class Config:
    """The ids that the archives must yield: how many, and the sha256 of the sorted ids, one a line.

    Defaults: of CMB's train_aug.txt and val.txt (SemiSeg-Contrastive at dc53c6da, splits/voc).
    """

    train: int = 10582
    val: int = 1449
    train_sha256: str = "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"
    val_sha256: str = "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"


def prepare(folder: Path, dataset: Dataset, options: Config, downloads: Mapping[str, Download]) -> None:
    """Write the layout of VOC and the manifest into the empty ``folder``.

    Raises UserError for an archive that cannot be had, is not the release, or lacks a file that it lists.
    """
    found = {
        name: archives.obtain(name, downloads.get(name, Download())) for name in (VOC_ARCHIVE, SBD_ARCHIVE)
    }
    release = folder / "release"
    voc, sbd = release / "voc", release / "sbd"
    archives.unpack(found[VOC_ARCHIVE], voc, "VOC2012", _of_voc)
    archives.unpack(found[SBD_ARCHIVE], sbd, "dataset", _of_sbd)
    try:
        lists = _lists(voc / VOC.lists, sbd)
        for listed, ids in lists.items():
            check_published(listed, ids, getattr(options, listed), getattr(options, f"{listed}_sha256"))
        for part in (VOC.images, VOC.masks):
            (folder / part).mkdir(parents=True)
        for listed, ids in lists.items():
            for each in ids:
                _place(each, voc, sbd, folder)
            write_text(folder / VOC.lists / f"{listed}.txt", "".join(f"{each}\n" for each in ids))
    except FileNotFoundError as error:
        missing = Path(error.filename).relative_to(release)
        raise UserError(f"{_named(found)}: not the releases: {missing} is not there") from None
    except UserError as error:
        raise UserError(f"{_named(found)}: not the releases: {error}") from None
    shutil.rmtree(release)
    source = {
        "archives": {path.name: {"sha256": archives.digest(path)} for path in found.values()},
        "revision": REVISION,
    }
    write_manifest(folder, dataset, VOC, tuple(lists), source)


def _of_voc(member: str) -> bool:
    return member.startswith((f"{VOC.images}/", f"{VOC.masks}/", f"{VOC.lists}/"))


def _of_sbd(member: str) -> bool:
    return member.startswith("cls/") or member in ("train.txt", "val.txt")


def _named(found: Mapping[str, Path]) -> str:
    return ", ".join(map(str, found.values()))


def _lists(voc: Path, sbd: Path) -> dict[str, tuple[str, ...]]:
    """The ids of train and val, sorted."""
    val = set(read_ids(voc / "val.txt"))
    train = {*read_ids(voc / "train.txt"), *read_ids(sbd / "train.txt"), *read_ids(sbd / "val.txt")} - val
    return {"train": tuple(sorted(train)), "val": tuple(sorted(val))}


def _place(identifier: str, voc: Path, sbd: Path, folder: Path) -> None:
    """Move an image and its mask to where they are read."""
    image = Path(VOC.images, f"{identifier}.jpg")
    mask = Path(VOC.masks, f"{identifier}.png")
    (voc / image).replace(folder / image)
    if (voc / mask).is_file():
        (voc / mask).replace(folder / mask)
    else:
        save_mask(read_sbd(sbd / "cls" / f"{identifier}.mat"), folder / mask)


def read_sbd(path: Path) -> NDArray[np.uint8]:
    """SBD's class mask (H, W) uint8, background 0: GTcls.Segmentation of a cls/*.mat.

    Raises FileNotFoundError, or UserError for a file that holds none.
    """
    try:
        values = loadmat(str(path), appendmat=False)["GTcls"]["Segmentation"][0, 0]
        if values.ndim != 2 or values.dtype.kind not in "iu" or values.max() > 255 or values.min() < 0:
            raise ValueError(f"GTcls.Segmentation is {values.dtype} {values.shape}")
        return np.ascontiguousarray(values, dtype=np.uint8)
    except FileNotFoundError:
        raise
    except NO_MASK as error:
        raise UserError(f"cls/{path.name}: no mask of SBD ({' '.join(str(error).split())})") from None
