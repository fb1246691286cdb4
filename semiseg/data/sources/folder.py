"""A user's own folder: images/, masks/, train.txt, val.txt and optionally test.txt.

The lists hold ids, one a line: images/<id>.jpg, .jpeg or .png and masks/<id>.png, suffixes in any case. The
values of a mask are the places of the classes in params.yaml, and 255. An image of train.txt without a mask
is never labelled. Options name other folders, a suffix of the masks' names, and a share of the images to
draw the validation list from where there are no lists.
"""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Dataset
from semiseg.data.archives import check_room
from semiseg.data.prepared import ORIGIN, Layout, write_manifest
from semiseg.data.splits import check_ids, draw, read_ids

REVISION = 2  # raise it when a change prepares other files from the same folder
LISTS = ("train", "val", "test")
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".png": ".png"}  # of images, and the suffixes of their copies
# A mask must be PNG, but another kind of file is refused rather than overlooked.
MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Config:
    path: str  # the folder, relative to the project's; ~ is the user's home
    images: str = "images"  # the folder of images in it; "." is the folder itself
    masks: str = "masks"  # the folder of masks in it, which may be the same
    mask_suffix: str = ""  # what a mask's name has and its image's has not: "_mask"
    validation: Fraction | None = None  # share of the images with a mask to score on; null: as val.txt lists

    def __post_init__(self) -> None:
        for name in ("images", "masks"):
            place = PurePosixPath(getattr(self, name))
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{name}: '{place}' is not the plain path of a folder in path")
        if self.validation is not None and not 0 < self.validation < 1:
            raise ValueError(f"validation: {self.validation} is outside (0, 1)")


Files = dict[str, list[Path]]
"""Files by id."""


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Copy the listed files into the empty ``folder`` and write the manifest.

    Raises UserError naming the user's list, image or mask that is missing, ambiguous or cannot be used.
    """
    own = own_folder(options.path)
    found = fingerprint(options)
    found_images, found_masks = find(options)
    lists = find_lists(options, found_images, found_masks)
    ids = [each for listed in lists.values() for each in listed]
    images = {each: image_of(options, each, found_images) for each in ids}
    masks = {
        each: mask
        for listed, names in lists.items()
        for each in names
        if (mask := mask_of(options, each, found_masks, listed)) is not None
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


def fingerprint(options: Config) -> str | None:
    """Return the sha256 (hex) of names, sizes and times of the dataset's files; None without the folder."""
    own = own_folder(options.path)
    if not os.path.isdir(own):  # noqa: PTH112 (Path.is_dir raises an error for a name that is too long)
        return None
    paths = {own / f"{listed}.txt" for listed in LISTS}
    paths |= {path for files in find(options) for each in files.values() for path in each}
    lines = []
    for path in paths:
        if path.is_file():
            found = path.stat()
            lines.append(f"{found.st_size} {found.st_mtime_ns} {path.relative_to(own).as_posix()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def find(options: Config) -> tuple[Files, Files]:
    """Return the files of the images' folder and those of the masks', by the ids of their images.

    In a folder for both, masks are the files whose names have the suffix, or, without one, the PNG files.
    """
    own = own_folder(options.path)
    images, masks, suffix = own / options.images, own / options.masks, options.mask_suffix
    if images != masks:
        return by_id(files_below(images, masks), images), by_id(files_below(masks, images), masks, suffix)
    files = files_below(images)
    chosen = [
        path for path in files if (path.stem.endswith(suffix) if suffix else path.suffix.lower() == ".png")
    ]
    others = sorted(set(files) - set(chosen))
    return by_id(others, images), by_id(chosen, masks, suffix)


def find_lists(options: Config, images: Files, masks: Files) -> dict[str, tuple[str, ...]]:
    """Read the lists of ids, or draw the validation list where the options say so.

    The draw depends on the ids alone. Raises UserError for a list that is missing or cannot be used, and for
    too few images with a mask.
    """
    own = own_folder(options.path)
    if options.validation is None:
        return read_lists(own)
    for listed in LISTS:
        if (own / f"{listed}.txt").exists():
            raise UserError(
                f"{own / listed}.txt: lists images, and the option validation draws them; remove one of both"
            )
    known = _of_kind(images, SUFFIXES)
    check_ids(sorted(known), own / options.images)
    both = pairs(images, masks)
    if len(both) < 2:
        raise UserError(
            f"{own}: {len(both)} images with a mask in {options.images} and {options.masks}; two are the "
            "least, one to train and one to score on"
        )
    scored, _ = draw(both, min(math.ceil(options.validation * len(both)), len(both) - 1), seed=0)
    return {"train": tuple(sorted(known - set(scored))), "val": tuple(sorted(scored))}


def pairs(images: Files, masks: Files) -> list[str]:
    """Return the ids of images that have a mask."""
    return sorted(_of_kind(images, SUFFIXES) & _of_kind(masks, MASK_SUFFIXES))


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
                f"{path}: no such file; write train.txt and val.txt, or let the option validation draw them"
            ) from None
        if not lists[listed]:
            raise UserError(f"{path}: lists no image")
        for each in lists[listed]:
            if each in seen:
                raise UserError(f"{path}: '{each}' is listed in {seen[each]} too; list each image once")
            seen[each] = path.name
    return lists


def files_below(folder: Path, without: Path | None = None) -> list[Path]:
    """Return the files below ``folder``, following links, but no hidden files and broken links.

    Files below the subfolder ``without`` are left out.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [each for each in folders if Path(place, each) != without]
        paths = (Path(place, each) for each in names if not each.startswith("."))
        found += [path for path in paths if path.is_file()]
    return found


def by_id(files: Iterable[Path], folder: Path, suffix: str = "") -> Files:
    """Group files by their path in ``folder``, less the file's suffix and a ``suffix`` of the name."""
    found: Files = {}
    for path in files:
        identifier = path.relative_to(folder).with_suffix("").as_posix()
        found.setdefault(identifier.removesuffix(suffix), []).append(path)
    return found


def _of_kind(files: Files, suffixes: Container[str]) -> set[str]:
    """Return the ids of files that have one of ``suffixes``."""
    return {each for each, paths in files.items() if any(path.suffix.lower() in suffixes for path in paths)}


def image_of(options: Config, identifier: str, found: Files) -> Path:
    """Return the file of an image. Raises UserError if there is none, or more than one."""
    paths = [path for path in found.get(identifier, []) if path.suffix.lower() in SUFFIXES]
    if not paths:
        place = own_folder(options.path) / options.images / identifier
        raise UserError(
            f"{place}: listed, but there is no such image with {', '.join(SUFFIXES)} (an id has no suffix)"
        )
    return _only(paths)


def mask_of(options: Config, identifier: str, found: Files, listed: str) -> Path | None:
    """Return the mask of an image of the list ``listed``; None for a training image without one.

    Raises UserError if there is more than one, or none for an image that is scored.
    """
    paths = [path for path in found.get(identifier, []) if path.suffix.lower() in MASK_SUFFIXES]
    paths = [path for path in paths if path.suffix.lower() == ".png"] or paths
    if not paths and listed != "train":
        place = own_folder(options.path) / options.masks / f"{identifier}{options.mask_suffix}.png"
        raise UserError(f"{place}: not there, but {listed}.txt lists it, and is scored")
    return _only(paths) if paths else None


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        one, other = sorted(paths)[:2]
        raise UserError(f"{one}: {other.name} lies beside it, of the same id; keep one of them")
    return paths[0]


def _copy(paths: tuple[Path, Path]) -> None:
    shutil.copyfile(*paths)
