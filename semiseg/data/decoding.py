"""Decode image and mask files to arrays, and check every file before it is used.

An error names the file and what is wrong with it. The caller adds what to do, which depends on whose file it
is: a user's own, or one that the suite has prepared.

Pillow decodes, because torchvision's JPEG decoder, which gives the same pixels in two thirds of the time, is
to be removed, and its PNG decoder crashed on a damaged file.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE

# Pillow's errors for a file that it cannot decode.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# MPO: a JPEG with a second picture, from some phones. PPM: uncompressed, as Cityscapes is prepared.
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "PPM")
# Pillow stretches greyscale PNG of fewer than 8 bits to 0-255; these factors lead back to the stored values.
STRETCHED: dict[int | None, int] = {2: 85, 4: 17}

Raster = NDArray[np.uint8]


def decode_image(path: Path) -> Raster:
    """Decode a JPEG, PNG or PPM image as it is shown, EXIF orientation applied, to RGB (H, W, 3) uint8.

    Raises UserError naming a file that cannot be decoded, is of another format, or has more than 8 bits a
    channel: which part of their range matters is for its owner to say.
    """
    try:
        with Image.open(path) as file:
            if file.format not in IMAGE_FORMATS:
                raise UserError(f"{path}: an image must be a JPEG or PNG file, this is {file.format}")
            if file.mode.startswith(("I", "F")) or _png_bits(path) == 16:
                raise UserError(
                    f"{path}: has more than 8 bits a channel; scale the range that matters to 0-255 and save "
                    "it with 8 bits"
                )
            ImageOps.exif_transpose(file, in_place=True)
            return np.array(file if file.mode == "RGB" else file.convert("RGB"))
    except BROKEN as error:
        raise UserError(f"{path}: unreadable image ({_reason(error)})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return the (width, height) that an image's header states, before any EXIF orientation.

    Raises UserError naming a file whose header cannot be read.
    """
    try:
        with Image.open(path) as file:
            return file.size
    except BROKEN as error:
        raise UserError(f"{path}: unreadable image ({_reason(error)})") from None


def decode_mask(path: Path, size: tuple[int, int] | None, num_classes: int) -> Raster:
    """Decode a mask to class ids (H, W) uint8, exactly as a palette or greyscale PNG stores them.

    Every bit depth is read; EXIF orientation is applied as to images. Raises UserError naming a file that
    cannot be decoded or is no such PNG by its content, whose size is not ``size``, the (H, W) of its image
    (None: any), or that holds a value that is neither a class nor 255.
    """
    try:
        with Image.open(path) as file:
            if file.format != "PNG":
                raise UserError(
                    f"{path}: a mask must be a PNG file, this is {file.format} by its content; export it as "
                    "PNG from its source, for lossy compression changes ids"
                )
            if file.mode not in ("1", "L", "P", "I", "I;16"):
                raise UserError(f"{path}: a mask must be a palette or greyscale PNG, this is {file.mode}")
            stretched = STRETCHED.get(_png_bits(path), 1) if file.mode == "L" else 1
            ImageOps.exif_transpose(file, in_place=True)
            values = np.array(file)  # a palette's indices, not its colours
    except BROKEN as error:
        raise UserError(f"{path}: unreadable mask ({_reason(error)})") from None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if stretched != 1:
        values //= stretched
    if size is not None and values.shape != size:
        raise UserError(_other_size(path, values.shape, size))
    largest = int(values.max(initial=0))
    if largest <= IGNORE:
        values = values.astype(np.uint8, copy=False)
        largest = (
            int((values + np.uint8(1)).max(initial=0)) - 1
        )  # 255 becomes 0, the fastest way to leave it out
    if largest >= num_classes:
        raise UserError(
            f"{path}: holds the value {largest}, but there are {num_classes} classes and {IGNORE}; correct "
            "the mask or the dataset's classes in params.yaml"
        )
    return values


def _png_bits(path: Path) -> int | None:
    """Return the bits per channel from a PNG file's header; None for any other file."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[24] if header.startswith(b"\x89PNG") and len(header) == 25 else None


def _other_size(path: Path, found: tuple[int, ...], expected: tuple[int, int]) -> str:
    said = f"{path}: the mask is {found[1]}x{found[0]}, its image {expected[1]}x{expected[0]}"
    if found == expected[::-1]:
        said += " as its EXIF orientation shows it; turn the mask likewise, or remove the orientation"
    return said


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
