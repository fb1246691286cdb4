"""A folder of one's own: images/, masks/, train.txt, val.txt and, where there is one, test.txt.

The lists hold ids, one a line: images/<id>.jpg (or .png) and masks/<id>.png, whose values are the places of
the classes in params.yaml, and 255. An image of train.txt without a mask is never labelled.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import Dataset, Download
from semiseg.data.prepared import Layout, write_manifest
from semiseg.data.splits import read_ids

REVISION = 1  # raised when the same folder comes to be prepared into other files
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Config:
    path: str  # the folder, from the project's


def prepare(folder: Path, dataset: Dataset, options: Config, downloads: Mapping[str, Download]) -> None:
    """Copy what is listed into the empty ``folder`` and write the manifest.

    Raises UserError naming a list or a file that is missing, one that cannot be read, and an id that stands
    twice or in two lists.
    """
    own = Path(options.path)
    lists = _lists(own)
    suffix = _suffix(own, lists)
    layout = Layout(image_suffix=suffix)
    for listed, ids in lists.items():
        for each in ids:
            _copy(own, folder, f"{layout.images}/{each}{suffix}")
            mask = f"{layout.masks}/{each}.png"
            if listed != "train" or (own / mask).is_file():
                _copy(own, folder, mask)
        write_text(folder / f"{listed}.txt", "".join(f"{each}\n" for each in ids))
    (folder / layout.masks).mkdir(exist_ok=True)
    try:
        write_manifest(folder, dataset, layout, tuple(lists), {"path": options.path, "revision": REVISION})
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(own))) from None


def _lists(own: Path) -> dict[str, tuple[str, ...]]:
    lists, seen = {}, dict[str, str]()
    for listed in ("train", "val", "test"):
        path = own / f"{listed}.txt"
        if listed == "test" and not path.exists():
            continue
        try:
            lists[listed] = read_ids(path)
        except FileNotFoundError:
            raise UserError(f"{path}: not there; a dataset of one's own has train.txt and val.txt") from None
        if not lists[listed]:
            raise UserError(f"{path}: lists no image")
        for each in lists[listed]:
            place = PurePosixPath(each)
            if place.is_absolute() or ".." in place.parts:
                raise UserError(f"{path}: '{each}' is not the name of an image below {own / 'images'}")
            if each in seen:
                raise UserError(f"{path}: '{each}' stands in {seen[each]} too; an image is in one list, once")
            seen[each] = path.name
    return lists


def _suffix(own: Path, lists: dict[str, tuple[str, ...]]) -> str:
    """The one suffix that every listed image has."""
    first = lists["train"][0]
    for suffix in SUFFIXES:
        if (own / "images" / f"{first}{suffix}").is_file():
            return suffix
    raise UserError(f"{own / 'images' / first}: no such image, with {', '.join(SUFFIXES)}")


def _copy(own: Path, folder: Path, name: str) -> None:
    if not (own / name).is_file():
        raise UserError(f"{own / name}: not there, but listed")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(own / name, folder / name)
