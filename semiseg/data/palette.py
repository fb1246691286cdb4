"""Masks as palette PNG files, in the colours of PASCAL VOC."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """Write a mask of class ids (H, W) uint8 as a palette PNG file, whatever the suffix of ``path``."""
    image = Image.fromarray(mask)
    image.putpalette(voc_palette())
    image.save(path, format="PNG", compress_level=3)  # a third of the default's time, a third larger


@cache
def voc_palette() -> tuple[int, ...]:
    """Return PASCAL VOC's 256 colours, RGB in turn: the bits of an id spread over the channels."""
    colours = []
    for label in range(256):
        for channel in range(3):
            bits = (label >> (3 * place + channel) & 1 for place in range(3))
            colours.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return tuple(colours)
