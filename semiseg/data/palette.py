"""Masks as palette PNG files, in the colours of PASCAL VOC."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """Write a mask of class ids (H, W) uint8 as a PNG file whose palette shows them."""
    image = Image.fromarray(mask)
    image.putpalette(voc_palette())
    image.save(path)


def voc_palette() -> list[int]:
    """PASCAL VOC's 256 colours: the bits of an id, spread over red, green and blue."""
    colours = []
    for label in range(256):
        for channel in range(3):
            bits = (label >> (3 * place + channel) & 1 for place in range(3))
            colours.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colours
