"""Cityscapes (Cordts et al., 2016): 19 classes, 2048x1024.

Its archives need an account: they are found in the archives folder, or fetched through cityscapesScripts,
which is no dependency of this project. The 2,975 and 500 ids must be those of DCC's lists, by their sha256.
Images are prepared as uncompressed PPM, which takes an eighth of the time of a PNG to read.
"""

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, write_text
from semiseg.base.labels import IGNORE
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Dataset
from semiseg.data import archives
from semiseg.data.archives import Download
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.data.prepared import Layout, check_published, write_manifest

IMAGES = "leftImg8bit_trainvaltest.zip"
MASKS = "gtFine_trainvaltest.zip"
DOWNLOADS = {  # only through the user's account
    IMAGES: Download(size=11592327197, md5="0a6e97e94b616a514066c9e2adb0c97f"),
    MASKS: Download(size=252567705, md5="4237c19de34c8a376e9ba46b495d6f66"),
}
REVISION = 2  # raise it when a change prepares other files from the same archives
USER, PASSWORD = "CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD"

# labelIds -> trainIds, from cityscapesScripts 2.3.0: helpers/labels.py. Every other id is ignored.
TRAIN_IDS = {
    7: 0,  # road
    8: 1,  # sidewalk
    11: 2,  # building
    12: 3,  # wall
    13: 4,  # fence
    17: 5,  # pole
    19: 6,  # traffic light
    20: 7,  # traffic sign
    21: 8,  # vegetation
    22: 9,  # terrain
    23: 10,  # sky
    24: 11,  # person
    25: 12,  # rider
    26: 13,  # car
    27: 14,  # truck
    28: 15,  # bus
    31: 16,  # train
    32: 17,  # motorcycle
    33: 18,  # bicycle
}
LABEL_IDS = 34  # 0 to 33

SUFFIX = ".ppm"  # of prepared images
IMAGE_BYTES = 2048 * 1024 * 3


@dataclass(frozen=True)
class Config:
    """Number and sha256 of the ids that the archives must hold, sorted, one a line.

    Defaults are those of DCC's lists (Context-Aware-Consistency at 4fdec7af, dataloaders/city_splits0:
    2975_train_supervised.txt and val.txt).
    """

    train: int = 2975
    val: int = 500
    train_sha256: str = "7f56ebec1d2eb8db59a3600206fcf7f05b53a7f3a8cf66381e6de73356b9eb7a"
    val_sha256: str = "73099b252b778d6fa89467ad05a7068b8a6a0f931693f909e1acbf189a36fb52"


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Write images/, masks/, train.txt, val.txt and the manifest into the empty ``folder``.

    An id is the name of an image without its suffix: aachen_000000_000019. Raises UserError for an archive
    that cannot be obtained, is not the release, or lacks a file.
    """
    found = [_archive(name) for name in (IMAGES, MASKS)]
    release = folder / "release"
    archives.check_room(folder, *found, converted=(options.train + options.val) * IMAGE_BYTES)
    archives.unpack(found[0], release / "images", "leftImg8bit", _is_image)
    archives.unpack(found[1], release / "masks", "gtFine", _is_mask)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    named = f"{found[0]}, {found[1]}: not the releases"
    for listed in ("train", "val"):
        images = sorted((release / "images" / listed).glob("*/*_leftImg8bit.png"))
        ids = [image.name.removesuffix("_leftImg8bit.png") for image in images]
        masks = [
            release / "masks" / listed / image.parent.name / f"{each}_gtFine_labelIds.png"
            for image, each in zip(images, ids, strict=True)
        ]
        to_masks = [(mask, folder / "masks" / f"{each}.png") for mask, each in zip(masks, ids, strict=True)]
        to_images = [
            (image, folder / "images" / f"{each}{SUFFIX}") for image, each in zip(images, ids, strict=True)
        ]
        try:
            check_published(listed, ids, getattr(options, listed), getattr(options, f"{listed}_sha256"))
            for _ in mapped(_convert_mask, to_masks, f"convert {listed}", " masks"):
                pass
            for _ in mapped(_convert_image, to_images, f"convert {listed}", " images"):
                pass
        except UserError as error:
            raise UserError(f"{named} ({error})") from None
        write_text(folder / f"{listed}.txt", "".join(f"{each}\n" for each in ids))
    shutil.rmtree(release)
    source = {
        "archives": {path.name: {"sha256": file_sha256(path)} for path in found},
        "revision": REVISION,
    }
    try:
        write_manifest(folder, dataset, Layout(image_suffix=SUFFIX), ("train", "val"), source)
    except UserError as error:
        raise UserError(f"{named} ({error})") from None


def _is_image(member: str) -> bool:
    return member.startswith(("train/", "val/")) and member.endswith("_leftImg8bit.png")


def _is_mask(member: str) -> bool:
    return member.startswith(("train/", "val/")) and member.endswith("_gtFine_labelIds.png")


def _convert_image(paths: tuple[Path, Path]) -> None:
    """Move the image of the first path to the second, uncompressed. Raises UserError if it cannot be read."""
    Image.fromarray(decode_image(paths[0])).save(paths[1])
    paths[0].unlink()


def _convert_mask(paths: tuple[Path, Path]) -> None:
    """Write the mask of the first path to the second, in train ids. Raises UserError if it cannot be read."""
    values = decode_mask(paths[0], None, LABEL_IDS)
    train_ids = np.full(256, IGNORE, dtype=np.uint8)
    train_ids[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    Image.fromarray(train_ids[values]).save(paths[1])


def _archive(name: str) -> Path:
    """Find an archive on disk, or fetch it through the user's account."""
    if paths.find_archive(name) is None:
        _fetch(name, DOWNLOADS[name])
    return archives.obtain(name, DOWNLOADS[name])


def _fetch(name: str, download: Download) -> None:
    """Fetch ``name`` through cityscapesScripts, which checks its digest and continues where it stopped.

    The account is that of the environment, or else the login that cityscapesScripts has stored.
    """
    account = os.environ.get(USER), os.environ.get(PASSWORD)
    downloader = _downloader()
    if downloader is None or not (_has_login(downloader) or all(account)):
        raise UserError(
            f"Cityscapes needs an account (https://www.cityscapes-dataset.com): "
            f"put {name} into {paths.ARCHIVES}/, or pip install cityscapesScripts and log in with csDownload "
            f"or set {USER} and {PASSWORD}"
        )
    place = paths.ARCHIVES / ".cityscapes.partial"
    place.mkdir(parents=True, exist_ok=True)
    partial = place / name
    if all(account):  # answers its questions; a login is neither stored nor used if stored
        downloader.appdirs = SimpleNamespace(user_data_dir=lambda *_: str(place / "no login"))  # type: ignore[attr-defined]
        downloader.input = lambda prompt: account[0] if "username" in prompt.lower() else "n"  # type: ignore[attr-defined]
        downloader.getpass = SimpleNamespace(getpass=lambda prompt: account[1])  # type: ignore[attr-defined]
    try:
        if not (partial.is_file() and partial.stat().st_size == download.size):  # nothing is left to fetch
            downloader.download_packages(
                session=downloader.login(),
                package_names=[name],
                destination_path=str(place),
                resume=partial.exists(),
            )
    except Exception as error:  # it raises no narrower exception
        if "MD5" in str(error):
            partial.unlink(missing_ok=True)
        said = " ".join(str(error).split()).replace(account[1] or "\0", "***") or type(error).__name__
        raise UserError(
            f"cityscapesScripts could not fetch {name} ({said}); try again or put it into {paths.ARCHIVES}/"
        ) from None
    partial.replace(paths.ARCHIVES / name)
    if not any(place.iterdir()):
        place.rmdir()


def _downloader() -> ModuleType | None:
    if importlib.util.find_spec("cityscapesscripts") is None:
        return None
    return importlib.import_module("cityscapesscripts.download.downloader")


def _has_login(downloader: ModuleType) -> bool:
    """Return whether csDownload has stored a login."""
    return Path(
        downloader.appdirs.user_data_dir("cityscapesscripts", "cityscapes"), "credentials.json"
    ).is_file()
