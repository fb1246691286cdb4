"""Shapes: images that the project draws itself; form tells the classes apart, and less surely colour.

Six forms of any size, rotation and texture overlap on a greyish ground, among clutter: coloured strokes and
blots that belong to the background. Each form has its own hue, from which each copy strays, and clutter takes
any hue. A few images teach misleading colours, many teach colour and form, so unlabelled images can help.
Masks come from integer arithmetic: the same seed gives the same mask on every platform. Files are laid out as
in PASCAL VOC: JPEG images, palette PNG masks with a border of 255.
"""

from collections.abc import Callable
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.labels import IGNORE
from semiseg.base.parameters import Dataset
from semiseg.data.palette import save_mask
from semiseg.data.prepared import VOC, write_manifest

REVISION = 2  # raise it when a change draws other images from the same options
UNIT = 1024  # coordinates are integers, in 1/1024 of a pixel
TURNS = 48  # directions in a full turn
MOST = 100  # forms, and strokes and blots, in an image

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Colours = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    seed: int = 0
    train: int = 160
    val: int = 40
    size: int = 64  # pixels, both sides
    forms: tuple[int, int] = (2, 4)  # fewest and most in an image
    clutter: tuple[int, int] = (4, 8)  # strokes and blots, fewest and most in an image
    radius: tuple[Fraction, Fraction] = (Fraction(1, 9), Fraction(1, 4))  # of a form, in sides of an image

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1 or self.size < 32:
            raise ValueError("train and val must be positive, size at least 32")
        if not 1 <= self.forms[0] <= self.forms[1] <= MOST:
            raise ValueError(f"forms must be [fewest, most], between 1 and {MOST}")
        if not 0 <= self.clutter[0] <= self.clutter[1] <= MOST:
            raise ValueError(f"clutter must be [fewest, most], between 0 and {MOST}")
        if not Fraction(1, 16) <= self.radius[0] < self.radius[1] <= Fraction(1, 2):
            raise ValueError("radius must be [least, most], shares of a side from 1/16 to 1/2")


# Whether a point (u, v), relative to the centre and rotated with the shape, lies in a shape of radius r.
FORMS: dict[str, Callable[[Integers, Integers, int], Mask]] = {
    "disc": lambda u, v, r: u * u + v * v <= r * r,
    "square": lambda u, v, r: np.maximum(abs(u), abs(v)) * 5 <= r * 4,
    "triangle": lambda u, v, r: (2 * v >= -r) & (7 * abs(u) <= 4 * (r - v)),
    "cross": lambda u, v, r: (np.maximum(abs(u), abs(v)) <= r) & (np.minimum(abs(u), abs(v)) * 10 <= r * 3),
    "ring": lambda u, v, r: (u * u + v * v <= r * r) & ((u * u + v * v) * 3 >= r * r),
    "star": lambda u, v, r: np.minimum(abs(u) + 3 * abs(v), 3 * abs(u) + abs(v)) * 7 <= r * 8,
}


def prepare(folder: Path, dataset: Dataset, options: Config) -> None:
    """Draw train and val images into the empty ``folder``. Raises UserError for classes it cannot draw."""
    unknown = [name for name in dataset.classes[1:] if name not in FORMS]
    if unknown:
        raise UserError(f"params.yaml: datasets: shapes: cannot draw '{unknown[0]}'; can {', '.join(FORMS)}")
    forms = [FORMS[name] for name in dataset.classes[1:]]
    for sub in (VOC.images, VOC.masks):
        (folder / sub).mkdir(parents=True)
    for number, (listed, count) in enumerate((("train", options.train), ("val", options.val))):
        ids = [f"{listed}_{index:04d}" for index in range(count)]
        for index, each in enumerate(ids):
            generator = np.random.Generator(np.random.PCG64([options.seed, number, index]))
            image, mask = draw(forms, options, generator)
            Image.fromarray(image).save(folder / VOC.images / f"{each}.jpg", quality=92)
            save_mask(mask, folder / VOC.masks / f"{each}.png")
        write_text(folder / VOC.lists / f"{listed}.txt", "".join(f"{each}\n" for each in ids))
    source = {"drawn": "by semiseg", "seed": options.seed, "revision": REVISION}
    write_manifest(folder, dataset, VOC, ("train", "val"), source)


def draw(
    forms: list[Callable[[Integers, Integers, int], Mask]], options: Config, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image (size, size, 3) and its mask (size, size), uint8: 0 background, forms from 1, 255."""
    size = options.size
    y, x = np.mgrid[:size, :size].astype(np.int64) * UNIT
    ground = _colours(generator.uniform(), (0.0, 0.4), generator)
    canvas, mask = _texture(x, y, ground, generator), np.zeros((size, size), dtype=np.uint8)
    chosen = generator.integers(1, len(forms) + 1, size=_number(options.forms, generator))
    clutter = np.zeros(_number(options.clutter, generator), dtype=np.int64)
    for label in generator.permutation(np.concatenate([chosen, clutter])).tolist():
        if label:
            inside = _placed(forms[label - 1], options.radius, x, y, generator)
        else:
            inside = _clutter(x, y, generator)
        hue = (label - 1) / len(forms) + generator.normal(0, 0.03) if label else generator.uniform()
        colours = _colours(hue, (0.5, 1.0) if label else (0.2, 0.8), generator)
        canvas = np.where(inside[:, :, None], _texture(x, y, colours, generator), canvas)
        mask[inside] = label
    noise = generator.normal(0, 6, canvas.shape)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), _with_border(mask)


def _number(span: tuple[int, int], generator: np.random.Generator) -> int:
    return int(generator.integers(span[0], span[1] + 1))


def _placed(
    form: Callable[[Integers, Integers, int], Mask],
    radii: tuple[Fraction, Fraction],
    x: Integers,
    y: Integers,
    generator: np.random.Generator,
) -> Mask:
    """Place a form at random, with a radius between two shares of the image's side."""
    size = len(x) * UNIT
    least, most = (int(size * share) for share in radii)
    radius = int(generator.integers(least, most))
    u, v = _turned(x, y, size, generator)
    return form(u, v, radius)


def _clutter(x: Integers, y: Integers, generator: np.random.Generator) -> Mask:
    """Draw a stroke, a bent stroke or an ellipse: never one of the forms."""
    size = len(x) * UNIT
    u, v = _turned(x, y, size, generator)
    length, width = (int(generator.integers(*span)) for span in ((size // 8, size // 3), (UNIT, 3 * UNIT)))
    kind = int(generator.integers(3))
    if kind == 0:  # a straight stroke
        return (abs(u) <= length) & (abs(v) <= width)
    if kind == 1:  # a bent stroke: a parabola's band
        return (abs(u) <= length) & (abs(v * length - u * u) <= 2 * width * length)
    small = length // 3  # an ellipse three times as long as broad
    return u * u + 9 * v * v <= 9 * small * small


def _turned(x: Integers, y: Integers, size: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Return coordinates around a random centre, in a random direction."""
    centre_x, centre_y = (int(each) for each in generator.integers(size // 8, size * 7 // 8, 2))
    angle = 2 * np.pi * int(generator.integers(TURNS)) / TURNS
    cosine, sine = round(float(np.cos(angle)) * UNIT), round(float(np.sin(angle)) * UNIT)
    dx, dy = x - centre_x, y - centre_y
    return (dx * cosine + dy * sine) // UNIT, (dy * cosine - dx * sine) // UNIT


def _colours(hue: float, saturation: tuple[float, float], generator: np.random.Generator) -> Colours:
    """Draw two colours near one hue (in turns): (2, 3), RGB in [0, 255]."""
    hues = (hue + generator.normal(0, 0.01, 2)) % 1
    saturations, values = generator.uniform(*saturation, 2), generator.uniform(0.35, 1.0, 2)
    return np.array([hsv_to_rgb(*each) for each in zip(hues, saturations, values, strict=True)]) * 255


def _texture(x: Integers, y: Integers, colours: Colours, generator: np.random.Generator) -> Colours:
    """Mix two colours by waves, checks or slow noise: (H, W, 3) in [0, 255]."""
    one, other = colours
    kind, period = int(generator.integers(3)), int(generator.integers(4, 14)) * UNIT
    angle = generator.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == 0:
        mix = (np.sin(2 * np.pi * along / period) + 1) / 2
    elif kind == 1:
        across = y * np.cos(angle) - x * np.sin(angle)
        mix = ((along // period + across // period) % 2).astype(np.float64)
    else:
        coarse = generator.uniform(0, 255, (8, 8)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC)
        mix = np.asarray(smooth, dtype=np.float64) / 255
    return one + (other - one) * mix[:, :, None]


def _with_border(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Set pixels on both sides of every change of class to 255, as in VOC."""
    border = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(mask.astype(np.int64), axis=axis) != 0
        before, after = (
            np.pad(change, [(p, 1 - p) if a == axis else (0, 0) for a in (0, 1)]) for p in (0, 1)
        )
        border |= before | after
    return np.where(border, np.uint8(IGNORE), mask)
