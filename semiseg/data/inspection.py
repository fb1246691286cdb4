"""Look at a folder of images and masks before params.yaml names it: its layout, its classes, what is wrong.

Nothing is written. Files are found and read as the source ``folder`` will find and read them.
"""

import functools
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE
from semiseg.base.parallel import mapped
from semiseg.data.contents import Pair, content
from semiseg.data.decoding import BROKEN
from semiseg.data.sources import folder
from semiseg.data.sources.folder import Config, Files
from semiseg.data.summary import aligned

VALIDATION = Fraction(1, 5)  # share of the images to score on, where no list says which
FOR_MASKS = re.compile(r"mask|label|annot|segm|gt|truth", re.IGNORECASE)  # in a folder's name
MANY = 100  # different values, of which masks seldom have more
SHOWN = 8  # values, colours or names in a line
CONVERT = 'docs/datasets.md, "Masks in colours", has a loop that converts them'

Histogram = NDArray[np.int64]
"""Pixels, or masks, of each value that a mask can have: (256,)."""


@dataclass(frozen=True)
class Inspection:
    """The contents of a folder, and its problems."""

    options: Config  # as its entry in params.yaml will have them
    lists: Mapping[str, tuple[str, ...]]  # ids by list
    masks: Mapping[str, int]  # images of each list that have a mask
    long_side: int  # pixels, of the median image
    short_side: int
    pixels: Histogram
    occurs: Histogram  # masks with at least one pixel of the value
    problems: tuple[str, ...]  # the dataset cannot be prepared before these are solved
    remarks: tuple[str, ...]  # other facts that a person should know

    @property
    def images(self) -> int:
        return sum(map(len, self.lists.values()))

    @property
    def num_classes(self) -> int:
        """The largest id in a mask plus one, and at least 2."""
        return max(2, len(np.trim_zeros(self.pixels[:IGNORE], "b")))


def inspect(path: str) -> Inspection:
    """Look at every image and mask of a folder; ``path`` is as params.yaml will name it.

    Raises UserError if it is not a folder, or no image in it has a mask.
    """
    options, others = find_options(path)
    images, masks = folder.find(options)
    problems: list[str] = []
    try:
        lists = folder.find_lists(options, images, masks)
    except UserError as error:
        lists = {"train": tuple(sorted(images))}
        problems.append(str(error))
    pairs: dict[str, Pair] = {}
    for listed, each in ((listed, each) for listed, names in lists.items() for each in names):
        try:
            image = folder.image_of(options, each, images)
            pairs[each] = Pair(image, folder.mask_of(options, each, masks, listed), num_classes=IGNORE)
        except UserError as error:
            problems.append(str(error))
    found = dict(zip(pairs, mapped(content, list(pairs.values()), "look"), strict=True))
    by_list = {
        listed: _total(found[each].histogram for each in names if each in found)
        for listed, names in lists.items()
    }
    pixels = _total(by_list.values())
    sides = [sides for pair in pairs.values() if (sides := _sides(pair.image))] or [(1, 1)]
    return Inspection(
        options,
        lists,
        masks={
            listed: sum(each in pairs and pairs[each].mask is not None for each in names)
            for listed, names in lists.items()
        },
        long_side=round(statistics.median(map(max, sides))),
        short_side=round(statistics.median(map(min, sides))),
        pixels=pixels,
        occurs=_total((each.histogram > 0).astype(np.int64) for each in found.values()),
        problems=(
            *problems,
            *_grouped(line for each in found.values() for line in each.problems),
            *_of_values(path, pixels),
        ),
        remarks=(*others, *_unmatched(images, masks), *_lacking(by_list)),
    )


def _total(histograms: Iterable[Histogram]) -> Histogram:
    return sum(histograms, np.zeros(256, dtype=np.int64))


def _sides(path: Path) -> tuple[int, int] | None:
    """Return the size of an image in pixels; None if it cannot be read."""
    try:
        with Image.open(path) as file:
            return file.size
    except BROKEN:
        return None


# --- layout -----------------------------------------------------------------------------------------------


def find_options(path: str) -> tuple[Config, list[str]]:
    """Return the options that pair most images with a mask, and a remark for each other pair of folders.

    Of equals, that one is taken whose masks lie in a folder named like masks or labels, or else are grey or
    palette images. Raises UserError if ``path`` is not a folder, or no image in it has a mask.
    """
    own = folder.own_folder(path)
    if not own.is_dir():
        raise UserError(f"{path}: not a folder; give the one that holds your images and masks")
    validation = None if any((own / f"{each}.txt").exists() for each in folder.LISTS) else VALIDATION
    names = {place: folder.by_id(folder.files_below(own / place), own / place) for place in _places(own)}
    find = functools.cache(folder.find)  # walks through both folders
    paired: dict[Config, int] = {}
    for images, masks in itertools.product(names, repeat=2):
        shared = [] if names[images].keys().isdisjoint(names[masks]) else [""]
        for suffix in (*shared, *_suffix(names[images].keys(), names[masks].keys())):
            options = Config(path, images, masks, suffix, validation)
            if count := len(folder.pairs(*find(options))):
                paired[options] = count
    if not paired:
        raise UserError(
            f"{path}: no image has a mask of its name; store images/<id>.jpg and masks/<id>.png, or <id>.jpg "
            "beside <id>_mask.png"
        )
    likeness = {each: _likeness(each, find(each)[1]) for each in paired}
    best = max(paired, key=lambda each: (paired[each], *likeness[each]))
    taken = _paths(find(best))
    others = [
        f"{each.images} and {each.masks} pair {count} more images, which are left out: put all images below "
        "one folder and all masks below another"
        for each, count in paired.items()
        if all(likeness[each]) and taken.isdisjoint(_paths(find(each)))
    ]
    return best, others


def _paths(found: tuple[Files, Files]) -> set[Path]:
    return {path for files in found for paths in files.values() for path in paths}


def _places(own: Path) -> list[str]:
    """Return the folder itself, those in it and those in these, by their paths in it."""
    inside = sorted([*own.glob("*/"), *own.glob("*/*/")])
    names = [each.relative_to(own).as_posix() for each in inside if each.is_dir()]
    return [".", *(each for each in names if not each.startswith(".") and "/." not in each)]


def _likeness(options: Config, found: Files) -> tuple[bool, bool]:
    """Tell by folders' names, and by the first mask's colours, whether masks and images are not exchanged."""
    named = bool(FOR_MASKS.search(options.masks)), bool(FOR_MASKS.search(options.images))
    path = next(paths[0] for paths in found.values())
    return options.images == options.masks or named == (True, False), _is_grey(path)


def _is_grey(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in ("1", "L", "P", "I", "I;16")
    except BROKEN:
        return False


def _suffix(images: Set[str], masks: Set[str]) -> list[str]:
    """Return what the names of most masks have behind the name of an image, if any have."""
    counts = Counter(
        mask[place:]
        for mask in masks
        for place, letter in enumerate(mask)
        if letter in "_-. " and mask[:place] in images
    )
    return [suffix for suffix, _ in counts.most_common(1)]


# --- problems and remarks ---------------------------------------------------------------------------------


def _grouped(lines: Iterable[str]) -> Iterator[str]:
    """Yield a line for each kind of problem; each of ``lines`` begins with a file's path and a colon."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        path, _, said = line.partition(": ")
        kinds.setdefault(re.sub(r"\d+", "0", said.replace(path, "")), []).append(line)
    for first, *more in kinds.values():
        colours = _colours(Path(first.partition(": ")[0]))
        said = f"{first}; {colours}; {CONVERT}" if colours else first
        yield f"{said} (and {len(more)} more such files)" if more else said


def _colours(path: Path) -> str | None:
    """Name the commonest colours of a PNG in colours; None for any other file."""
    try:
        with Image.open(path) as file:
            if file.format != "PNG" or file.mode not in ("RGB", "RGBA", "LA"):
                return None
            pixels = np.array(file.convert("RGB")).reshape(-1, 3)
    except BROKEN:
        return None
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    if len(colours) > 256:
        return f"it has {len(colours)} colours, so it is no mask, or was compressed or resized"
    return f"its colours are {_some('#' + bytes(each).hex() for each in colours[np.argsort(-counts)])}"


def _of_values(path: str, pixels: Histogram) -> Iterator[str]:
    """Yield the problems with the values of all masks together."""
    present = np.flatnonzero(pixels[:IGNORE]).tolist()
    if not present and pixels[IGNORE]:
        yield f"{path}: every pixel of the masks is {IGNORE}, which means 'not labelled'; {CONVERT}"
    if len(present) == 1 and pixels[IGNORE]:
        yield (
            f"{path}: the masks hold {present[0]} and {IGNORE} alone, and {IGNORE} means 'not labelled'; "
            f"store the classes as 0 and 1: {CONVERT}"
        )
    elif len(present) == 1:
        yield f"{path}: the masks hold the value {present[0]} alone, so there is nothing to tell apart"
    elif present and max(present) >= 2 * len(present):
        yield (
            f"{path}: the masks hold the values {_some(map(str, present))}: shades of grey, not the ids "
            f"0, 1, 2, …; {CONVERT}"
        )


def _unmatched(images: Files, masks: Files) -> Iterator[str]:
    """Yield a line for images without masks and for masks without images."""
    without = sorted(images.keys() - masks.keys())
    if without:
        yield f"{len(without)} images have no mask and are never labelled: {_some(without)}"
    lonely = sorted(path.name for each in masks.keys() - images.keys() for path in masks[each])
    if lonely:
        yield f"{len(lonely)} masks have no image of their name and are left out: {_some(lonely)}"


def _lacking(by_list: Mapping[str, Histogram]) -> Iterator[str]:
    """Yield the classes that all masks lack, and then those that a list's lack."""
    pixels = _total(by_list.values())
    present = np.flatnonzero(pixels[:IGNORE])
    if len(present) > MANY:
        yield f"the masks hold {len(present)} different values; lossy compression or resizing leaves so many"
    absent = sorted(set(range(present.max(initial=0))) - set(present.tolist()))
    if absent:
        yield f"no mask holds {_some(map(str, absent))}: a class without a pixel is never learnt or scored"
    for listed, counts in by_list.items():
        here = [str(value) for value in present if not counts[value]]
        if here and counts.any():
            yield f"no mask of '{listed}' holds {_some(here)}"


def _some(texts: Iterable[str]) -> str:
    shown = list(texts)
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")


# --- in words ---------------------------------------------------------------------------------------------


def report(found: Inspection, classes: Sequence[str]) -> str:
    """Return the layout, a table of the ``classes``, and a line for each problem and each remark."""
    options = found.options
    lists = ", ".join(f"{len(names)} {listed}" for listed, names in found.lists.items())
    how = "as the lists say" if options.validation is None else f"{options.validation} drawn for val"
    name = f"<id>{options.mask_suffix}.png"
    lines = [
        f"{options.path}: {found.images} images ({lists}: {how}), {sum(found.masks.values())} with a mask",
        f"images in {options.images}, masks in {options.masks} as {name}; the median image has "
        f"{found.long_side}x{found.short_side} pixels",
        "",
    ]
    total = max(1, found.pixels.sum())
    names = [*enumerate(classes), *([(IGNORE, "(ignored)")] if found.pixels[IGNORE] else [])]
    rows = [
        (each, str(value), f"{found.pixels[value] / total:.1%}", str(found.occurs[value]))
        for value, each in names
    ]
    lines += aligned([("class", "value", "of pixels", "in masks"), *rows])
    if found.problems or found.remarks:
        lines.append("")
    return "\n".join(
        [
            *lines,
            *(f"problem: {each}" for each in found.problems),
            *(f"note: {each}" for each in found.remarks),
        ]
    )
