"""Predict images that belong to no dataset, with the network that a run has trained.

An image is predicted by itself and as the protocol's ``evaluation`` says, so that images of the evaluation
list give the predictions that evaluation wrote. An image of more than LARGEST pixels, or one that does not
fit into the GPU's memory, is predicted in tiles of TILE pixels, each seen with MARGIN pixels around it.
"""

import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.base.files import written_whole
from semiseg.base.gpu_memory import enough_memory
from semiseg.base.parallel import mapped
from semiseg.base.parameters import Evaluation, RunConfig
from semiseg.base.progress import bar
from semiseg.data.decoding import decode_image
from semiseg.data.palette import save_mask, voc_palette
from semiseg.evaluation import score
from semiseg.models.network import SegmentationNetwork, size_of

LARGEST = 2**24  # pixels of an image that is predicted as a whole: 4096 x 4096
TILE = 2048  # pixels, the side of a tile
MARGIN = 256  # pixels that are seen around a tile
LEGEND = "legend.png"
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm")  # suffixes of images in a folder, in any case

Place = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Outputs:
    """The files that are written for each image, beside its mask ``<name>.png``."""

    overlay: bool = False  # <name>.overlay.jpg: the image under its mask; and legend.png, once
    probabilities: bool = False  # <name>.npy: (C, H, W) float16

    def paths(self, folder: Path, name: str) -> dict[str, Path]:
        """Return the files of the image ``name`` in ``folder``, by what they hold."""
        paths = {"mask": folder / f"{name}.png"}
        if self.overlay:
            paths["overlay"] = folder / f"{name}.overlay.jpg"
        if self.probabilities:
            paths["probabilities"] = folder / f"{name}.npy"
        return paths


def find_images(given: Sequence[str]) -> dict[str, Path]:
    """Return the images that ``given`` files, folders and globs name, by the names of their outputs.

    A file is named by its stem, an image in a folder, however deep, by its path in the folder without suffix.
    Raises UserError for what names no image, and for two images of one name.
    """
    found: dict[str, Path] = {}
    for each in given:
        matches = _matches(each)
        if not matches:
            raise UserError(f"{each}: no such file or folder, and no match if it is a pattern")
        for path in matches:
            images = _images_of_folder(path) if path.is_dir() else {path.stem: path}
            for name, image in images.items():
                other = found.setdefault(name, image)
                if other.resolve() != image.resolve():
                    raise UserError(f"{image}: has the name of {other}; predict it into another folder")
    return found


def _matches(given: str) -> list[Path]:
    """Return the path, or else the paths that it matches as a pattern."""
    path = Path(given)
    if path.exists():
        return [path]
    try:
        return sorted(Path(path.anchor).glob(path.relative_to(path.anchor).as_posix()))
    except ValueError:  # not a pattern
        return []


def _images_of_folder(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            other = images.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
            if other != path:
                raise UserError(f"{path}: has the name of {other}; rename one of them")
    if not images:
        raise UserError(f"{folder}: holds no image with {', '.join(SUFFIXES)}")
    return images


def check(
    images: Mapping[str, Path], folder: Path, outputs: Outputs, classes: Sequence[str], *, overwrite: bool
) -> None:
    """Refuse what cannot be predicted or written, before any work.

    Raises UserError for an image that cannot be decoded, for an output that is there already, unless
    ``overwrite`` (the same legend may be there), and always for one that would replace an image or another.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give another one")
    own = {path.resolve() for path in images.values()}
    written = [path for name in images for path in outputs.paths(folder, name).values()]
    for path in written:
        if path.resolve() in own:
            raise UserError(f"{path}: an output would replace this image; give another folder")
    existing = [path for path in written if path.exists()]
    if outputs.overlay:
        if "legend" in images:
            raise UserError(f"{images['legend']}: its mask would replace {LEGEND}; rename the image")
        there = folder / LEGEND
        existing += [there] if there.exists() and there.read_bytes() != _legend_file(classes) else []
    if existing and not overwrite:
        raise UserError(f"{existing[0]}: exists{_more(existing)}; give another folder, or --overwrite")
    problems = [each for each in mapped(_problem, list(images.values()), "check images") if each is not None]
    if problems:
        raise UserError(f"{problems[0]}{_more(problems)}")


def _more(found: Sequence[object]) -> str:
    return f" ({len(found)} such files)" if len(found) > 1 else ""


def _problem(path: Path) -> str | None:
    try:
        decode_image(path)
    except UserError as error:
        return str(error)
    return None


def predict(
    network: SegmentationNetwork,
    config: RunConfig,
    images: Mapping[str, Path],
    folder: Path,
    outputs: Outputs,
    device: torch.device,
) -> None:
    """Predict ``images`` with ``network``, which lies on ``device``, and write ``outputs`` to ``folder``."""
    protocol = config.protocol
    if outputs.overlay:
        with written_whole(folder / LEGEND) as temporary:
            temporary.write_bytes(_legend_file(config.dataset.classes))
    with (
        score.evaluation_mode([network], device, protocol.precision),
        bar("predict", len(images), " images") as progress,
    ):
        for name, path in images.items():
            image = decode_image(path)
            pixels = torch.from_numpy(image).permute(2, 0, 1).to(device)
            files = outputs.paths(folder, name)
            labels = torch.empty(size_of(pixels), dtype=torch.uint8, device=device)
            with ExitStack() as stack:
                kept = None
                if "probabilities" in files:
                    temporary = stack.enter_context(written_whole(files["probabilities"]))
                    shape = (network.num_classes, *size_of(pixels))
                    kept = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                for place, probabilities in pieces_of(network, pixels, protocol.evaluation, str(path)):
                    labels[place] = probabilities.argmax(0).to(labels.dtype)
                    if kept is not None:
                        kept[:, *place] = probabilities.half().cpu().numpy()
                if kept is not None:
                    kept.flush()
            write_mask(labels, files["mask"])
            if "overlay" in files:
                with written_whole(files["overlay"]) as temporary:
                    overlay(image, labels.cpu().numpy()).save(temporary, format="JPEG", quality=90)
            progress.update()


def pieces_of(
    network: SegmentationNetwork, image: Tensor, evaluation: Evaluation, name: str
) -> Iterator[tuple[Place, Tensor]]:
    """Yield places that cover an image (3, H, W) uint8, each with its class probabilities (C, h, w).

    It is one place, the whole image, unless the image is too large; then a line on stderr says so. Raises
    UserError if not even a tile fits into the GPU's memory.
    """
    height, width = size_of(image)
    if height * width <= LARGEST:
        try:
            whole = score.predict(network, image[None], evaluation)[0]
        except torch.OutOfMemoryError:
            pass
        else:
            yield (slice(0, height), slice(0, width)), whole
            return
    if max(height, width) > TILE:
        print(f"{name}: {width}x{height} pixels are predicted in tiles of {TILE}", file=sys.stderr)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            place = slice(top, min(height, top + TILE)), slice(left, min(width, left + TILE))
            seen = tuple(
                slice(max(0, side.start - MARGIN), min(length, side.stop + MARGIN))
                for side, length in zip(place, (height, width), strict=True)
            )
            inside = tuple(
                slice(side.start - around.start, side.stop - around.start)
                for side, around in zip(place, seen, strict=True)
            )
            tile = image[None, :, *seen]
            scaled = evaluation
            if evaluation.long_side is not None:
                long_side = round(evaluation.long_side * max(size_of(tile)) / max(height, width))
                scaled = dataclasses.replace(evaluation, long_side=max(1, long_side))
            with enough_memory(f"a tile of {name}", "set precision: bf16 in the protocol"):
                probabilities = score.predict(network, tile, scaled)[0]
            yield place, probabilities[:, *inside]


def write_mask(labels: Tensor, path: Path) -> None:
    """Write class ids (H, W) as a palette PNG, whole or not at all."""
    with written_whole(path) as temporary:
        save_mask(labels.to("cpu", torch.uint8).numpy(), temporary)


def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    """Return an image (H, W, 3) half covered by the palette's colours of ``labels`` (H, W)."""
    colours = Image.fromarray(labels)
    colours.putpalette(voc_palette())
    return Image.blend(Image.fromarray(image), colours.convert("RGB"), 0.5)


def legend(classes: Sequence[str]) -> Image.Image:
    """Return an image that names the palette's colour of each class."""
    font, side = ImageFont.load_default(16), 24
    width = max(int(font.getlength(name)) for name in classes)
    drawn = Image.new("RGB", (width + 2 * side, side * len(classes)), "white")
    draw = ImageDraw.Draw(drawn)
    palette = voc_palette()
    for place, name in enumerate(classes):
        top = place * side
        draw.rectangle((4, top + 4, side - 4, top + side - 4), fill=palette[3 * place : 3 * place + 3])
        draw.text((side + 4, top + 3), name, fill="black", font=font)
    return drawn


def _legend_file(classes: Sequence[str]) -> bytes:
    """Return the legend as a PNG file."""
    file = io.BytesIO()
    legend(classes).save(file, format="PNG")
    return file.getvalue()
