from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.data.reading import read_image, read_mask

MASK = np.array([[0, 1, 255], [2, 1, 0]], dtype=np.uint8)


def save_palette(mask: np.ndarray, path: Path) -> None:
    file = Image.fromarray(mask).convert("P")
    file.putdata(mask.flatten().tolist())
    file.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, *[7] * 759])
    file.save(path)


def test_images_are_rgb_whatever_the_file(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([pixels, pixels[:, :, :1]])).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "rgb.png"), torch.tensor(pixels).permute(2, 0, 1))
    np.testing.assert_array_equal(decode_image(tmp_path / "rgba.png"), pixels)
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.png"), np.dstack([pixels[:, :, 0]] * 3))


def test_a_mask_holds_ids_not_colours(tmp_path: Path) -> None:
    save_palette(MASK, tmp_path / "palette.png")
    Image.fromarray(MASK).save(tmp_path / "grey.png")
    for name in ("palette", "grey"):
        mask = read_mask(tmp_path / f"{name}.png", torch.zeros(3, 2, 3, dtype=torch.uint8), 3)
        assert mask.dtype == torch.uint8
        assert mask.tolist() == MASK.tolist()


@pytest.mark.parametrize(
    ("size", "classes", "words"),
    [
        ((3, 2), 3, "mask.png: the mask is 3x2, its image 2x3"),
        ((2, 3), 2, "mask.png: holds the value 2, but there are 2 classes and 255"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    tmp_path: Path, size: tuple[int, int], classes: int, words: str
) -> None:
    save_palette(MASK, tmp_path / "mask.png")
    with pytest.raises(UserError, match=words):
        decode_mask(tmp_path / "mask.png", size, classes)


def test_a_mask_of_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png: a mask must be a palette or greyscale PNG, this is RGB"):
        decode_mask(tmp_path / "mask.png", (2, 3), 3)


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_an_image_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png" if name.endswith("png") else tmp_path / "whole.jpg")
    whole = (tmp_path / f"whole{Path(name).suffix}").read_bytes()
    tail = 20  # check sums and the end marker: without them every pixel is still there
    for length in range(0, len(whole) - tail, 5):
        (tmp_path / name).write_bytes(whole[:length])
        for read in (decode_image, read_image):
            with pytest.raises(UserError, match=f"{name}: unreadable image") as refusal:
                read(tmp_path / name)
            assert "\n" not in str(refusal.value)


def test_a_broken_mask_and_an_absent_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(UserError, match=r"mask\.png: unreadable mask"):
        decode_mask(tmp_path / "mask.png", (2, 3), 3)
    with pytest.raises(UserError, match=r"none\.jpg: unreadable image \(No such file or directory\)"):
        read_image(tmp_path / "none.jpg")
