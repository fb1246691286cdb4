import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.data.reading import read_image, read_mask

MASK = np.array([[0, 1, 255], [2, 1, 0]], dtype=np.uint8)


def palette(mask: np.ndarray, colours: int = 256) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, *[7] * 759][: 3 * colours])
    return image


def save_png(path: Path, size: tuple[int, int], bits: int, colour: int, rows: list[bytes]) -> None:
    """Write a PNG chunk by chunk: ``size`` (H, W), ``colour`` 0 for grey and 2 for RGB."""
    header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")):
            file.write(
                struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            )


def save_grey(values: np.ndarray, path: Path, bits: int) -> None:
    """Write a greyscale PNG of 1, 2, 4 or 8 bits a pixel."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    packed = [bytes(int(row[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(row), 8)) for row in rows]
    save_png(path, values.shape, bits, 0, packed)


def oriented(image: Image.Image, path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=100, subsampling=0)


# --- images -----------------------------------------------------------------------------------------------


def test_images_are_rgb_whatever_the_file(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([pixels, pixels[:, :, :1]])).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "rgb.png"), torch.tensor(pixels).permute(2, 0, 1))
    np.testing.assert_array_equal(decode_image(tmp_path / "rgba.png"), pixels)
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.png"), np.dstack([pixels[:, :, 0]] * 3))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_an_image_of_few_grey_levels_keeps_its_range(bits: int, tmp_path: Path) -> None:
    levels = np.arange(2**bits).reshape(1, -1)
    save_grey(levels, tmp_path / "grey.png", bits)
    expected = levels * 255 // (2**bits - 1)
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.png")[:, :, 0], expected)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_read_as_it_is_shown(orientation: int, suffix: str, tmp_path: Path) -> None:
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:8, :8], stored[8:, 24:] = 250, 120  # a bright top left and a grey bottom right corner
    # EXIF 2.3, tag 274: the shown places of the stored first row and first column.
    flip_rows, flip_columns, transpose = {
        1: (False, False, False),
        2: (False, True, False),
        3: (True, True, False),
        4: (True, False, False),
        5: (False, False, True),
        6: (True, False, True),
        7: (True, True, True),
        8: (False, True, True),
    }[orientation]
    shown = stored[::-1] if flip_rows else stored
    shown = shown[:, ::-1] if flip_columns else shown
    shown = shown.T if transpose else shown
    oriented(Image.fromarray(np.dstack([stored] * 3)), tmp_path / f"a.{suffix}", orientation)
    found = decode_image(tmp_path / f"a.{suffix}")
    assert found.shape == (*shown.shape, 3)
    np.testing.assert_allclose(found[:, :, 0].astype(int), shown.astype(int), atol=3)


def test_an_image_of_more_than_8_bits_is_refused_and_never_clipped(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    save_png(tmp_path / "colour.png", (1, 2), 16, 2, [struct.pack(">6H", 0, 256, 4095, 65535, 1, 300)])
    with Image.open(tmp_path / "colour.png") as file:
        assert file.mode == "RGB"  # Pillow halves its bits silently
    for name in ("deep.png", "colour.png"):
        with pytest.raises(UserError, match=rf"{name}: has more than 8 bits a channel"):
            decode_image(tmp_path / name)


def test_an_image_of_another_format_is_refused_by_content(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "float.tif").rename(tmp_path / "float.png")
    with pytest.raises(UserError, match=r"float\.png: an image must be a JPEG or PNG file, this is TIFF"):
        decode_image(tmp_path / "float.png")


# --- masks ------------------------------------------------------------------------------------------------


def test_a_mask_holds_ids_not_colours(tmp_path: Path) -> None:
    palette(MASK).save(tmp_path / "palette.png")
    Image.fromarray(MASK).save(tmp_path / "grey.png")
    Image.fromarray(MASK.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("palette", "grey", "deep"):
        mask = read_mask(tmp_path / f"{name}.png", torch.zeros(3, 2, 3, dtype=torch.uint8), 3)
        assert mask.dtype == torch.uint8
        assert mask.tolist() == MASK.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_ids_are_as_they_are_stored_for_every_bit_depth(kind: str, bits: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(bits)
    for width in (1, 3, 8, 13):  # rows that do not fill their last byte too
        mask = generator.integers(0, min(2**bits, 254), (5, width), dtype=np.uint8)
        if kind == "grey":
            save_grey(mask, tmp_path / "mask.png", bits)
        else:
            palette(mask, 2**bits).save(tmp_path / "mask.png", bits=bits)
        assert (tmp_path / "mask.png").read_bytes()[24] == bits
        np.testing.assert_array_equal(decode_mask(tmp_path / "mask.png", (5, width), 254), mask)


@pytest.mark.parametrize(
    ("size", "classes", "words"),
    [
        ((3, 3), 3, "mask.png: the mask is 3x2, its image 3x3"),
        ((3, 2), 3, "mask.png: the mask is 3x2, its image 2x3 as its EXIF orientation shows it"),
        ((2, 3), 2, "mask.png: holds the value 2, but there are 2 classes and 255"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    tmp_path: Path, size: tuple[int, int], classes: int, words: str
) -> None:
    palette(MASK).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=words):
        decode_mask(tmp_path / "mask.png", size, classes)


@pytest.mark.parametrize("value", [3, 256, 65535])
def test_a_deep_mask_with_another_value_is_refused(value: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255, value]], dtype=np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=f"holds the value {value}"):
        decode_mask(tmp_path / "mask.png", (1, 3), 3)


def test_a_mask_of_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png: a mask must be a palette or greyscale PNG, this is RGB"):
        decode_mask(tmp_path / "mask.png", (2, 3), 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", ["mask.png", "mask.PNG"])
def test_a_jpeg_is_no_mask_whatever_its_name(name: str, progressive: bool, tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "a.jpg", progressive=progressive)
    (tmp_path / "a.jpg").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: a mask must be a PNG file, this is JPEG"):
        decode_mask(tmp_path / name, (2, 3), 3)


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_an_image_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"whole{Path(name).suffix}")
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


def test_only_a_prepared_file_is_mended_by_preparing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("own/images/a.png"), Path("data/mine/images/a.png")):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"?")
        with pytest.raises(UserError) as refusal:
            decode_image(path)
        assert "download.py" not in str(refusal.value)
        with pytest.raises(UserError) as refusal:
            read_image(path)
        prepared = path.parts[0] == "data"
        assert str(refusal.value).endswith("python pipeline/download.py mine") == prepared
