"""The contents of a dataset's files: checked, counted, and identified by a digest of their pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.data.decoding import Raster, decode_image, decode_mask


@dataclass(frozen=True)
class Pair:
    """The paths of an image and its mask, if it has one."""

    image: Path
    mask: Path | None
    num_classes: int


@dataclass(frozen=True)
class Content:
    """The contents of a pair; ``problems`` has a line for each file that cannot be used."""

    image: str | None  # sha256 of the decoded image
    mask: str | None  # sha256 of the decoded mask
    histogram: NDArray[np.int64]  # (256,) pixels of each value of the mask
    problems: tuple[str, ...] = ()


def content(pair: Pair) -> Content:
    """Decode and check both files of a pair, each even if the other is broken."""
    problems, size, image_sha256, mask_sha256 = [], None, None, None
    histogram = np.zeros(256, dtype=np.int64)
    try:
        image = decode_image(pair.image)
        size, image_sha256 = (image.shape[0], image.shape[1]), pixels_sha256(image)
    except UserError as error:
        problems.append(str(error))
    if pair.mask is not None:
        try:
            mask = decode_mask(pair.mask, size, pair.num_classes)
            # Pillow counts bytes; np.bincount would first copy them to 64 bits.
            histogram = np.array(Image.fromarray(mask).histogram(), dtype=np.int64)
            mask_sha256 = pixels_sha256(mask)
        except UserError as error:
            problems.append(str(error))
    return Content(image_sha256, mask_sha256, histogram, tuple(problems))


def pixels_sha256(pixels: Raster) -> str:
    """Return the sha256 (hex) of decoded pixels and their shape."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
