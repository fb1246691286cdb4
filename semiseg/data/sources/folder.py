"""A user's own folder: images/, masks/, train.txt, val.txt and optionally test.txt.

The lists hold ids, one a line: images/<id>.jpg, .jpeg or .png and masks/<id>.png, suffixes in any case. The
values of a mask are the places of the classes in params.yaml, and 255. An image of train.txt without a mask
is never labelled.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Dataset
from semiseg.data.archives import check_room
from semiseg.data.prepared import ORIGIN, Layout, write_manifest
from semiseg.data.splits import read_ids

REVISION = 2  # raise it when a change prepares other files from the same folder
LISTS = ("train", "val", "test")
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".png": ".png"}  # of images, and the suffixes of their copies
# Of masks: only PNG is accepted, but another kind must be refused rather than overlooked.
MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Config:
    path: str  # the folder, relative to the project's; ~ is the user's home


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Copy the listed files into the empty ``folder`` and write the manifest.

    Raises UserError naming the user's list, image or mask that is missing, ambiguous or cannot be used.
    """
    own = own_folder(options.path)
    found = fingerprint(own)
    lists = read_lists(own)
    ids = [each for listed in lists.values() for each in listed]
    found_images, found_masks = _by_id(own / "images"), _by_id(own / "masks")
    images = {each: _image(own, each, found_images) for each in ids}
    masks = {
        each: mask
        for listed, names in lists.items()
        for each in names
        if (mask := _mask(own, each, found_masks, listed)) is not None
    }
    suffixes = {each: SUFFIXES[path.suffix.lower()] for each, path in images.items()}
    common = Counter(suffixes.values()).most_common(1)[0][0]
    others = {each: suffix for each, suffix in suffixes.items() if suffix != common}
    layout = Layout(image_suffix=common, other_suffixes=others)
    originals = {layout.image(each): path for each, path in images.items()}
    originals |= {layout.mask(each): path for each, path in masks.items()}
    check_room(folder, *originals.values())
    for name in originals:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for _ in mapped(_copy, [(path, folder / name) for name, path in originals.items()], "copy", " files"):
        pass
    for listed, names in lists.items():
        write_text(folder / layout.list(listed), "".join(f"{each}\n" for each in names))
    files = {path for part in (found_images, found_masks) for paths in part.values() for path in paths}
    unlisted = sorted(path.relative_to(own).as_posix() for path in files - set(originals.values()))
    write_text(folder / ORIGIN, json.dumps({"fingerprint": found, "unlisted": unlisted}, indent=2) + "\n")
    source = {"path": options.path, "revision": REVISION}
    write_manifest(folder, dataset, layout, tuple(lists), source, originals)


def own_folder(path: str) -> Path:
    """Return the user's folder, with ~ replaced by the user's home; ~name stays if nobody has that name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises an error then)


def fingerprint(own: Path) -> str | None:
    """Return the sha256 (hex) of names, sizes and times of the dataset's files; None without the folder."""
    if not os.path.isdir(own):  # noqa: PTH112 (Path.is_dir raises an error for a name that is too long)
        return None
    paths = [own / f"{listed}.txt" for listed in LISTS]
    paths += [path for part in ("images", "masks") for path in _files(own / part)]
    lines = []
    for path in paths:
        if path.is_file():
            found = path.stat()
            lines.append(f"{found.st_size} {found.st_mtime_ns} {path.relative_to(own).as_posix()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def read_lists(own: Path) -> dict[str, tuple[str, ...]]:
    """Read train.txt, val.txt and, if there is one, test.txt; an image is in one of them, once."""
    lists: dict[str, tuple[str, ...]] = {}
    seen: dict[str, str] = {}
    for listed in LISTS:
        path = own / f"{listed}.txt"
        if listed == "test" and not path.exists():
            continue
        try:
            lists[listed] = read_ids(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UserError(
                f"{path}: no such file; a dataset of one's own has train.txt and val.txt"
            ) from None
        if not lists[listed]:
            raise UserError(f"{path}: lists no image")
        for each in lists[listed]:
            if each in seen:
                raise UserError(f"{path}: '{each}' is listed in {seen[each]} too; list each image once")
            seen[each] = path.name
    return lists


def _files(folder: Path) -> list[Path]:
    """Return the files below ``folder``, following links, without hidden files and broken links."""
    return [
        path
        for place, _, names in os.walk(folder, followlinks=True)
        for each in names
        if not each.startswith(".") and (path := Path(place, each)).is_file()
    ]


def _by_id(folder: Path) -> dict[str, list[Path]]:
    """Return the files below ``folder`` by their path in it without suffix."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _image(own: Path, identifier: str, found: dict[str, list[Path]]) -> Path:
    paths = [path for path in found.get(identifier, []) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(
            f"{own / 'images' / identifier}: listed, but there is no such image with {', '.join(SUFFIXES)} "
            "(an id has no suffix)"
        )
    return _only(paths)


def _mask(own: Path, identifier: str, found: dict[str, list[Path]], listed: str) -> Path | None:
    """Return the mask of an image; None for a training image without one."""
    paths = [path for path in found.get(identifier, []) if path.suffix.lower() in MASK_SUFFIXES]
    paths = [path for path in paths if path.suffix.lower() == ".png"] or paths
    if not paths and listed != "train":
        raise UserError(
            f"{own / 'masks' / identifier}.png: not there, but {listed}.txt lists it, and is scored"
        )
    return _only(paths) if paths else None


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        one, other = sorted(paths)[:2]
        raise UserError(f"{one}: {other.name} lies beside it, of the same id; keep one of them")
    return paths[0]


def _copy(paths: tuple[Path, Path]) -> None:
    shutil.copyfile(*paths)
