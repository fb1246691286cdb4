"""A prepared dataset on disk: images, masks, lists of ids, a list of its files, and a manifest.

The manifest is written last: a folder that has one is whole. ``files.txt`` names every other file with a
digest of its content: of an image's or a mask's decoded pixels, because training sees those, and another
version of a PNG encoder writes other bytes for the same mask. A file that ``files.txt`` does not name was not
written by this suite, and is neither replaced nor removed. ``origin.json`` describes a user's folder when it
was copied; a change there that leaves every image and mask as it was changes no digest.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, write_text
from semiseg.base.labels import IGNORE
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Dataset
from semiseg.data.contents import Pair, content
from semiseg.data.decoding import decode_mask
from semiseg.data.splits import ids_sha256, read_ids

MANIFEST = "manifest.json"
FILES = "files.txt"
ORIGIN = "origin.json"  # only for a user's own folder
VOID = "(ignored)"  # pixels of 255, in the manifest
KEYS = {"counts", "digest", "layout", "masks", "occurs", "pixels", "source", "config"}  # that are read again


@dataclass(frozen=True)
class Layout:
    """The places of a dataset's files in its folder."""

    images: str = "images"
    masks: str = "masks"
    lists: str = "."
    image_suffix: str = ".jpg"
    other_suffixes: Mapping[str, str] = field(default_factory=dict)  # by id, of images with another one

    def image(self, identifier: str) -> str:
        """Return the path of an image in the dataset's folder."""
        return f"{self.images}/{identifier}{self.other_suffixes.get(identifier, self.image_suffix)}"

    def mask(self, identifier: str) -> str:
        """Return the path of a mask in the dataset's folder."""
        return f"{self.masks}/{identifier}.png"

    def list(self, listed: str) -> str:
        """Return the path of the list train, val or test in the dataset's folder."""
        return (Path(self.lists) / f"{listed}.txt").as_posix()


VOC = Layout("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset whose manifest was found."""

    name: str
    folder: Path
    classes: tuple[str, ...]
    layout: Layout
    digest: str  # sha256 of files.txt, and so of ids, images and masks

    def ids(self, listed: str) -> tuple[str, ...]:
        """Return the ids of the list train, val or test.

        Raises UserError if there is no such list, and if it is no longer as it was prepared.
        """
        name = self.layout.list(listed)
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{path}: this dataset has no such list of images")
        if file_sha256(path) != read_files(self.folder).get(name):
            check_files(self)
            raise UserError(f"{path}: not the list of ids that was prepared; {remedy(self.name)}")
        return read_ids(path)

    def by_mask(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the training ids with a mask, and those without."""
        check_files(self)
        ids, files = self.ids("train"), read_files(self.folder)
        masked = {each for each in ids if self.layout.mask(each) in files}
        return tuple(each for each in ids if each in masked), tuple(
            each for each in ids if each not in masked
        )

    def image_path(self, identifier: str) -> Path:
        """Return the file of an image."""
        return self.folder / self.layout.image(identifier)

    def mask_path(self, identifier: str) -> Path:
        """Return the file of a mask; training images may have none."""
        return self.folder / self.layout.mask(identifier)


def open_dataset(name: str, config: Dataset) -> PreparedDataset:
    """Open the prepared dataset ``name``. Raises UserError with the command that prepares it if it is not."""
    folder = paths.dataset(name)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: dataset '{name}' is not prepared; {remedy(name)}")
    if manifest["config"] != _prepared_from(config):
        raise UserError(f"{folder}: prepared from other settings than params.yaml has now; {remedy(name)}")
    return PreparedDataset(name, folder, config.classes, Layout(**manifest["layout"]), manifest["digest"])


def remedy(name: str) -> str:
    """Say what to do if a dataset is not prepared, or no longer as it was prepared."""
    return f"prepare '{name}' with: python pipeline/download.py {name}"


def with_remedy(error: UserError, path: Path) -> UserError:
    """Return ``error`` about the file ``path`` with what to do, if preparing a dataset again mends it."""
    if not path.is_relative_to(paths.DATA):
        return error
    return UserError(f"{error}; {remedy(path.relative_to(paths.DATA).parts[0])}")


def is_prepared(name: str, config: Dataset) -> bool:
    """Return whether the dataset is there, whole and made from these settings."""
    manifest = read_manifest(paths.dataset(name))
    return manifest is not None and manifest["config"] == _prepared_from(config)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a prepared folder; None if there is none, for it is written last.

    Raises UserError for a file that is no manifest, or one of an older revision of this suite.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        raise UserError(f"{path}: not a dataset's manifest as this revision writes it; {remedy(folder.name)}")
    return manifest


def read_files(folder: Path) -> dict[str, str]:
    """Read the digests (hex) of the files prepared in ``folder``, by their path in it.

    Raises UserError for a list that is broken, or that names a file outside ``folder``.
    """
    path = folder / FILES
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        files = {name: sha256 for sha256, name in (line.split(" ", 1) for line in lines)}
    except ValueError:
        files = {"..": ""}
    if any(name.startswith("/") or ".." in name.split("/") for name in files):
        raise UserError(f"{path}: not a list of prepared files; move {folder} away and prepare it again")
    return files


def check_files(dataset: PreparedDataset) -> None:
    """Raise UserError unless the list of prepared files is as it was written."""
    path = dataset.folder / FILES
    if not path.is_file() or file_sha256(path) != dataset.digest:
        raise UserError(
            f"{path}: not the list of files that was prepared; move {dataset.folder} away, then "
            f"{remedy(dataset.name)}"
        )


def read_origin(folder: Path) -> dict[str, Any]:
    """Read the state of a user's own folder when it was copied: its fingerprint, and unlisted files.

    Empty for other sources, and if the file is broken.
    """
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def check_scored(dataset: PreparedDataset, listed: str) -> None:
    """Raise UserError unless the list ``listed`` exists and has a pixel to score."""
    manifest = read_manifest(dataset.folder) or {}
    if listed not in manifest["pixels"]:
        raise UserError(
            f"{_origin(dataset)}: there is no list '{listed}' to be scored on; add {listed}.txt, "
            f"or let the dataset's evaluate in params.yaml name one of {', '.join(manifest['pixels'])}"
        )
    if not _labelled_pixels(manifest["pixels"][listed]):
        raise UserError(
            f"{_origin(dataset)}: every pixel of '{listed}' is {IGNORE}, which is not scored; correct the "
            "masks"
        )


def check_labelled(dataset: PreparedDataset, ids: Iterable[str]) -> None:
    """Raise UserError unless a mask of ``ids`` has a labelled pixel; reads masks until one has."""
    for each in ids:
        if (decode_mask(dataset.mask_path(each), None, len(dataset.classes)) != IGNORE).any():
            return
    raise UserError(
        f"{_origin(dataset)}: every pixel of the labelled images is {IGNORE}, so there is nothing to learn "
        "from; correct their masks"
    )


def check_judged(dataset: PreparedDataset, ids: Iterable[str]) -> None:
    """Raise UserError if one of ``ids``, whose pseudo-labels are to be judged, has no mask."""
    _, without = dataset.by_mask()
    if bare := sorted(set(without).intersection(ids)):
        raise UserError(
            f"{_origin(dataset)}: image '{bare[0]}' has no mask to judge its pseudo-labels by; set the "
            "protocol's judge_pseudo_labels to false"
        )


def _origin(dataset: PreparedDataset) -> str:
    """Return the folder whose files a user can correct."""
    manifest = read_manifest(dataset.folder) or {}
    return str(manifest["source"].get("path", dataset.folder))


def check_published(listed: str, ids: Collection[str], count: int, sha256: str) -> None:
    """Raise UserError unless the list ``listed`` holds the published ids.

    ``sha256`` is that of the sorted ids, one a line (``LC_ALL=C sort | sha256sum``).
    """
    if len(ids) != count:
        raise UserError(f"{listed} has {len(ids)} images, {count} were published")
    if (found := ids_sha256(sorted(ids))) != sha256:
        raise UserError(f"{listed} has other images than were published: sha256 {found}, not {sha256}")


def write_manifest(
    folder: Path,
    config: Dataset,
    layout: Layout,
    lists: tuple[str, ...],
    source: Mapping[str, Any],
    originals: Mapping[str, Path] | None = None,
) -> None:
    """Check every listed file, then write files.txt and manifest.json into ``folder``.

    The manifest has counts, pixels and images of each class, the digest, and what ``source`` says of the
    origin. Call it last: it is the sign that everything else is there. An image of the list train may lack
    its mask. ``originals`` are the user's files that those in ``folder`` are copies of, for messages. Raises
    UserError naming an image or a mask that training could not read, and for masks that cannot train or be
    scored: without a labelled pixel, or with a single class in all of them.
    """
    named = {layout.list(listed): file_sha256(folder / layout.list(listed)) for listed in lists}
    listed_ids = [(listed, each) for listed in lists for each in read_ids(folder / layout.list(listed))]
    pairs = []
    for listed, each in listed_ids:
        mask = folder / layout.mask(each)
        needed = listed != "train" or mask.exists()
        pairs.append(Pair(folder / layout.image(each), mask if needed else None, len(config.classes)))
    counts, masks = dict.fromkeys(lists, 0), dict.fromkeys(lists, 0)
    values = {listed: np.zeros((2, 256), dtype=np.int64) for listed in lists}  # pixels and images of each
    for (listed, each), found in zip(listed_ids, mapped(content, pairs, "check"), strict=True):
        if found.problems:
            raise UserError(_of_original(found.problems[0], folder, each, layout, originals or {}))
        named[layout.image(each)] = str(found.image)
        if found.mask is not None:
            named[layout.mask(each)] = found.mask
        counts[listed] += 1
        masks[listed] += found.mask is not None
        values[listed] += np.stack([found.histogram, found.histogram > 0])
    pixels = {listed: _by_class(config, values[listed][0]) for listed in lists}
    occurs = {listed: _by_class(config, values[listed][1]) for listed in lists}
    _check_masks(str(source.get("path", folder)), config, pixels)
    text = "".join(f"{sha256} {name}\n" for name, sha256 in sorted(named.items()))
    manifest = {
        "counts": counts,
        "masks": masks,  # images that have one
        "classes": config.classes,
        "pixels": pixels,
        "occurs": occurs,  # images with at least one pixel of the class
        "digest": hashlib.sha256(text.encode()).hexdigest(),
        "layout": asdict(layout),
        "source": dict(source),
        "versions": {package: version(package) for package in ("numpy", "pillow")},
        "config": _prepared_from(config),
    }
    write_text(folder / FILES, text)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _of_original(
    problem: str, folder: Path, identifier: str, layout: Layout, originals: Mapping[str, Path]
) -> str:
    """Return a message about a copy as one about the user's own file."""
    for name in (layout.image(identifier), layout.mask(identifier)):
        problem = problem.replace(str(folder / name), str(originals.get(name, folder / name)))
    return problem


def _by_class(config: Dataset, values: NDArray[np.int64]) -> dict[str, int]:
    named = dict(zip(config.classes, values.tolist(), strict=False))
    return {**named, VOID: int(values[IGNORE])}


def _labelled_pixels(pixels: Mapping[str, int]) -> int:
    return sum(count for name, count in pixels.items() if name != VOID)


def _check_masks(place: str, config: Dataset, pixels: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse masks that cannot train or be scored; ``place`` is the folder that messages name."""
    for listed, counts in pixels.items():
        if not _labelled_pixels(counts):
            raise UserError(
                f"{place}: no mask of the list '{listed}' has a pixel that is not {IGNORE}, so there is "
                "nothing to learn from or to score; correct the masks"
            )
    present = [name for name in config.classes if any(counts[name] for counts in pixels.values())]
    if len(present) == 1:
        said = f"{place}: the masks hold one class alone, {config.classes.index(present[0])} ('{present[0]}')"
        if any(counts[VOID] for counts in pixels.values()):
            raise UserError(
                f"{said}, and {IGNORE}, which means 'not labelled'; if {IGNORE} stands for a class, store "
                "that class by its place in the dataset's classes in params.yaml"
            )
        raise UserError(f"{said}, so there is nothing to tell apart; correct the masks")


def _prepared_from(config: Dataset) -> dict[str, Any]:
    """Return the settings that preparing depends on, in JSON's types."""
    settings = {"source": config.source, "classes": config.classes, "options": dict(config.options)}
    tree: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return tree
