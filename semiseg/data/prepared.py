"""A prepared dataset on disk: images, masks, lists of ids, and a manifest that says it is whole."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import Dataset, canonical
from semiseg.data.decoding import IGNORE, decode_image, decode_mask
from semiseg.data.splits import digest, read_ids

MANIFEST = "manifest.json"
VOID = "(ignored)"  # pixels of 255, in the manifest
KEYS = {"counts", "digest", "layout", "source", "config"}  # of the manifest, that are read again


@dataclass(frozen=True)
class Layout:
    """Where a dataset's files lie in its folder."""

    images: str = "images"
    masks: str = "masks"
    lists: str = "."
    image_suffix: str = ".jpg"


VOC = Layout("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset whose manifest was found."""

    name: str
    folder: Path
    classes: tuple[str, ...]
    layout: Layout
    digest: str  # sha256 over ids and label files

    def ids(self, listed: str) -> tuple[str, ...]:
        """The ids of the list train, val or test. Raises UserError where there is no such list."""
        path = self.folder / self.layout.lists / f"{listed}.txt"
        try:
            return read_ids(path)
        except FileNotFoundError:
            raise UserError(f"{path}: this dataset has no such list of images") from None

    def image_path(self, identifier: str) -> Path:
        return self.folder / self.layout.images / f"{identifier}{self.layout.image_suffix}"

    def mask_path(self, identifier: str) -> Path:
        return self.folder / self.layout.masks / f"{identifier}.png"


def open_dataset(name: str, config: Dataset) -> PreparedDataset:
    """The prepared dataset ``name``. Raises UserError with the command that prepares it otherwise."""
    folder = paths.dataset(name)
    manifest = read_manifest(folder)
    remedy = f"prepare it with: python pipeline/download.py {name}"
    if manifest is None:
        raise UserError(f"{folder}: dataset '{name}' is not prepared; {remedy}")
    if manifest["config"] != _prepared_from(config):
        raise UserError(f"{folder}: prepared from other settings than params.yaml has now; {remedy}")
    layout = Layout(**manifest["layout"])
    return PreparedDataset(name, folder, config.classes, layout, manifest["digest"])


def is_prepared(name: str, config: Dataset) -> bool:
    """Whether the dataset is there, whole and made from these settings."""
    manifest = read_manifest(paths.dataset(name))
    return manifest is not None and manifest["config"] == _prepared_from(config)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder; None where there is none, for it is written last."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        raise UserError(f"{path}: not a dataset's manifest; remove {folder} and prepare it again")
    return manifest


def check_published(listed: str, ids: Collection[str], count: int, sha256: str) -> None:
    """Raises UserError unless the list ``listed`` holds the ids that were published.

    ``sha256``: of the sorted ids, one a line (``LC_ALL=C sort | sha256sum``).
    """
    if len(ids) != count:
        raise UserError(f"{listed} has {len(ids)} images, {count} were published")
    if (found := digest(sorted(ids))) != sha256:
        raise UserError(f"{listed} has other images than were published: sha256 {found}, not {sha256}")


def write_manifest(
    folder: Path, config: Dataset, layout: Layout, lists: tuple[str, ...], source: Mapping[str, Any]
) -> None:
    """Check every listed file, then write manifest.json: counts, pixels of each class, a digest, origin.

    The digest goes over ids and labels.
    ``source`` is what the dataset's own source has to say of it. Call it last: the manifest is the sign
    that everything else is there. An image of the list train may lack its mask: it can be unlabelled. Raises
    UserError naming an image or a mask that training could not read.
    """
    sha256, counts, pixels = hashlib.sha256(), {}, {}
    for listed in lists:
        ids = read_ids(folder / layout.lists / f"{listed}.txt")
        counts[listed] = len(ids)
        histogram = np.zeros(256, dtype=np.int64)
        for each in ids:
            sha256.update(f"{listed}:{each}\n".encode())
            image = decode_image(folder / layout.images / f"{each}{layout.image_suffix}")
            mask = folder / layout.masks / f"{each}.png"
            if mask.exists() or listed != "train":
                values = decode_mask(mask, image.shape[:2], len(config.classes))
                histogram += np.bincount(values.ravel(), minlength=256)
                sha256.update(mask.read_bytes())
        named = dict(zip(config.classes, histogram.tolist(), strict=False))
        pixels[listed] = {**named, VOID: int(histogram[IGNORE])}
    manifest = {
        "counts": counts,
        "classes": config.classes,
        "pixels": pixels,
        "digest": sha256.hexdigest(),
        "layout": asdict(layout),
        "source": dict(source),
        "versions": {package: version(package) for package in ("numpy", "pillow")},
        "config": _prepared_from(config),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _prepared_from(config: Dataset) -> dict[str, Any]:
    """The settings that preparing depends on, as JSON gives them back."""
    tree: dict[str, Any] = json.loads(canonical(config))
    return {key: tree[key] for key in ("source", "classes", "options")}
