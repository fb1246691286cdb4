"""PASCAL VOC 2012 (Everingham et al.) with the masks of SBD (Hariharan et al., 2011).

Made from the two releases alone: VOC's own masks, with their border of 255, where there are any, and SBD's
class masks (cls/*.mat, GTcls.Segmentation), which have no border, elsewhere. The training list is VOC's and
SBD's, train and val, without VOC's validation list, which is scored. The ids must be those of the field's
train_aug.txt and val.txt, as CMB publishes them, by the sha256 of the sorted ids.
"""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, write_text
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Dataset
from semiseg.data import archives
from semiseg.data.archives import Download
from semiseg.data.palette import save_mask
from semiseg.data.prepared import VOC, check_published, write_manifest
from semiseg.data.splits import read_ids

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
SBD_ARCHIVE = "benchmark.tgz"
DOWNLOADS = {
    VOC_ARCHIVE: Download(
        (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
        ),
        size=1999639040,
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
    SBD_ARCHIVE: Download(
        (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        ),
        size=1419539633,
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
}
REVISION = 1  # raise it when a change prepares other files from the same archives
# scipy's errors for a file that is no MATLAB file, is cut off, or holds something else.
NO_MASK = (OSError, ValueError, TypeError, KeyError, IndexError, zlib.error, MatReadError)


@dataclass(frozen=True)
class Config:
    """Number and sha256 of the ids that the archives must yield, sorted, one a line.

    Defaults are those of CMB's train_aug.txt and val.txt (SemiSeg-Contrastive at dc53c6da, splits/voc).
    """

    train: int = 10582
    val: int = 1449
    train_sha256: str = "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"
    val_sha256: str = "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Write the layout of VOC and the manifest into the empty ``folder``.

    Raises UserError for an archive that cannot be obtained, is not the release, or lacks a file that it
    lists.
    """
    found = {name: archives.obtain(name, download) for name, download in DOWNLOADS.items()}
    release = folder / "release"
    voc, sbd = release / "voc", release / "sbd"
    archives.check_room(folder, *found.values())
    archives.unpack(found[VOC_ARCHIVE], voc, "VOC2012", _of_voc)
    archives.unpack(found[SBD_ARCHIVE], sbd, "dataset", _of_sbd)
    named = f"{', '.join(map(str, found.values()))}: not the releases"
    try:
        lists = _lists(voc / VOC.lists, sbd)
        for listed, ids in lists.items():
            check_published(listed, ids, getattr(options, listed), getattr(options, f"{listed}_sha256"))
        for part in (VOC.images, VOC.masks):
            (folder / part).mkdir(parents=True)
        for listed, ids in lists.items():
            write_text(folder / VOC.list(listed), "".join(f"{each}\n" for each in ids))
            _place(ids, voc, sbd, folder, f"convert {listed}")
        shutil.rmtree(release)
        source = {
            "archives": {path.name: {"sha256": file_sha256(path)} for path in found.values()},
            "revision": REVISION,
        }
        write_manifest(folder, dataset, VOC, tuple(lists), source)
    except FileNotFoundError as error:
        missing = Path(error.filename).relative_to(release)
        raise UserError(f"{named}: {missing} is not there") from None
    except UserError as error:
        raise UserError(f"{named}: {error}") from None


def _of_voc(member: str) -> bool:
    return member.startswith((f"{VOC.images}/", f"{VOC.masks}/", f"{VOC.lists}/"))


def _of_sbd(member: str) -> bool:
    return member.startswith("cls/") or member in ("train.txt", "val.txt")


def _lists(voc: Path, sbd: Path) -> dict[str, tuple[str, ...]]:
    """Return the ids of train and val, sorted."""
    val = set(read_ids(voc / "val.txt"))
    train = {*read_ids(voc / "train.txt"), *read_ids(sbd / "train.txt"), *read_ids(sbd / "val.txt")} - val
    return {"train": tuple(sorted(train)), "val": tuple(sorted(val))}


def _place(ids: Sequence[str], voc: Path, sbd: Path, folder: Path, description: str) -> None:
    """Move images and VOC's own masks into place, and convert SBD's masks."""
    converted = []
    for each in ids:
        (voc / VOC.image(each)).replace(folder / VOC.image(each))
        if (voc / VOC.mask(each)).is_file():
            (voc / VOC.mask(each)).replace(folder / VOC.mask(each))
        else:
            converted.append((sbd / "cls" / f"{each}.mat", folder / VOC.mask(each)))
    for _ in mapped(_convert, converted, description, " masks"):
        pass


def _convert(paths: tuple[Path, Path]) -> None:
    """Write SBD's mask of the first path to the second."""
    save_mask(read_sbd(paths[0]), paths[1])


def read_sbd(path: Path) -> NDArray[np.uint8]:
    """Read SBD's class mask (H, W) uint8, background 0: GTcls.Segmentation of a cls/*.mat.

    Raises FileNotFoundError, or UserError for a file without such a mask.
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
