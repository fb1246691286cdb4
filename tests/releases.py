"""Tiny archives in the layouts of VOC 2012, SBD and Cityscapes, and a server on loopback that gives them."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from scipy.sparse import coo_array

from semiseg.data.archives import Download
from semiseg.data.palette import voc_palette
from semiseg.data.sources import cityscapes, voc

Files = dict[str, bytes]

VOC_TRAIN = ["2007_000032", "2007_000039"]
VOC_VAL = ["2007_000033", "2007_000042"]
SBD_TRAIN = ["2007_000032", "2008_000002", "2008_000003", "2007_000033"]  # the last is one of VOC's val
SBD_VAL = ["2008_000007", "2008_000008", "2007_000042"]
TRAIN = ["2007_000032", "2007_000039", "2008_000002", "2008_000003", "2008_000007", "2008_000008"]
CITY_TRAIN = [f"{city}_000000_{number:06d}" for city in ("aachen", "bochum") for number in (19, 20, 21)]
CITY_VAL = ["frankfurt_000000_000294", "lindau_000001_000019"]


def published(train: list[str], val: list[str]) -> dict[str, int | str]:
    """Return the options of a source whose release has these ids."""
    lists = {"train": train, "val": val}
    digests = {
        f"{listed}_sha256": hashlib.sha256(lines(sorted(ids))).hexdigest() for listed, ids in lists.items()
    }
    return {listed: len(ids) for listed, ids in lists.items()} | digests


def mask_of(identifier: str, size: tuple[int, int] = (40, 48)) -> NDArray[np.uint8]:
    """Draw a mask in the style of VOC: background, two of the 20 classes and a border of 255."""
    mask = np.zeros(size, dtype=np.uint8)
    first = int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % 19 + 1
    mask[4:20, 4:30], mask[22:36, 10:44] = first, first + 1
    mask[3, 3:31] = 255
    return mask


def png(mask: NDArray[np.uint8], *, palette: bool = False) -> bytes:
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(voc_palette())
    return _encoded(image, "PNG")


def picture(identifier: str, kind: str, size: tuple[int, int] = (40, 48)) -> bytes:
    seed = int(hashlib.sha256(identifier.encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(pixels), kind)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def lines(ids: list[str]) -> bytes:
    return "".join(f"{each}\n" for each in ids).encode()


def voc_files() -> Files:
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/Annotations/2007_000032.xml": b"<annotation/>"}
    for each in sorted({*VOC_TRAIN, *VOC_VAL, *TRAIN, "2008_000001"}):
        files[f"{top}/JPEGImages/{each}.jpg"] = picture(each, "JPEG")
    for each in VOC_TRAIN + VOC_VAL:
        files[f"{top}/SegmentationClass/{each}.png"] = png(mask_of(each), palette=True)
        files[f"{top}/SegmentationObject/{each}.png"] = png(mask_of("object"), palette=True)
    for listed, ids in {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": VOC_TRAIN + VOC_VAL}.items():
        files[f"{top}/ImageSets/Segmentation/{listed}.txt"] = lines(ids)
        files[f"{top}/ImageSets/Main/{listed}.txt"] = lines(["2008_000001"])
    return files


def mat(mask: NDArray[np.uint8], name: str = "GTcls") -> bytes:
    buffer = io.BytesIO()
    boundaries = np.empty((20, 1), dtype=object)
    for place in range(20):
        boundaries[place, 0] = coo_array(mask == place + 1)
    fields = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": np.unique(mask)}
    savemat(buffer, {name: fields}, do_compression=True)
    return buffer.getvalue()


def sbd_mask(identifier: str) -> NDArray[np.uint8]:
    """Draw SBD's own mask, which has no border."""
    mask = mask_of(f"sbd {identifier}")
    mask[mask == 255] = 0
    return mask


def sbd_files() -> Files:
    top = "benchmark_RELEASE"
    files = {f"{top}/benchmark_code_RELEASE/demo.m": b"%", f"{top}/dataset/img/2008_000002.jpg": b"image"}
    for each in {*SBD_TRAIN, *SBD_VAL}:
        files[f"{top}/dataset/cls/{each}.mat"] = mat(sbd_mask(each))
        files[f"{top}/dataset/inst/{each}.mat"] = b"not read"
    files[f"{top}/dataset/train.txt"] = lines(SBD_TRAIN)
    files[f"{top}/dataset/val.txt"] = lines(SBD_VAL)
    return files


def label_ids(identifier: str) -> NDArray[np.uint8]:
    """Draw a mask with every id of Cityscapes' labelIds, 0 to 33."""
    mask = np.arange(48 * 64).reshape(48, 64) // 16 % 34
    return np.roll(mask, len(identifier)).astype(np.uint8)


def cityscapes_files() -> tuple[Files, Files]:
    images: Files = {"README": b"read me", "license.txt": b"terms"}
    masks: Files = dict(images)
    for listed, ids in {"train": CITY_TRAIN, "val": CITY_VAL, "test": ["berlin_000000_000019"]}.items():
        for each in ids:
            place = f"{listed}/{each.partition('_')[0]}/{each}"
            images[f"leftImg8bit/{place}_leftImg8bit.png"] = picture(each, "PNG", (48, 64))
            masks[f"gtFine/{place}_gtFine_labelIds.png"] = png(label_ids(each))
            masks[f"gtFine/{place}_gtFine_instanceIds.png"] = b"not read"
            masks[f"gtFine/{place}_gtFine_polygons.json"] = json.dumps({"objects": []}).encode()
    return images, masks


def tar(files: Files, *extra: tarfile.TarInfo, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info, io.BytesIO(b"evil") if info.size else None)
    return buffer.getvalue()


def zipped(files: Files, *extra: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in extra:
            archive.writestr(info, content)
    return buffer.getvalue()


def voc_archives() -> Files:
    return {voc.VOC_ARCHIVE: tar(voc_files()), voc.SBD_ARCHIVE: tar(sbd_files(), mode="w:gz")}


def cityscapes_archives() -> Files:
    images, masks = cityscapes_files()
    return {cityscapes.IMAGES: zipped(images), cityscapes.MASKS: zipped(masks)}


class Server:
    """Gives ``files`` by name. ``cuts``: how many bytes the next answers for a name hold, each broken off.

    ``asked``: (name, the first byte asked for) of every request. A name in ``whole`` ignores ranges.
    """

    def __init__(self) -> None:
        self.files: Files = {}
        self.cuts: dict[str, list[int]] = {}
        self.whole: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.address = ""

    def downloads(self, *mirrors: str) -> dict[str, Download]:
        """Return a download of every file by md5 and size, from ``mirrors`` (paths of the server) or here."""
        return {
            name: Download(
                tuple(f"{self.address}{mirror}/{name}" for mirror in (*mirrors, "")),
                len(content),
                hashlib.md5(content).hexdigest(),
            )
            for name, content in self.files.items()
        }

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = unquote(request.path.removeprefix("/"))
        start = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.asked.append((name, start))
        if name not in self.files:
            request.send_error(404)
            return
        content = self.files[name]
        start = 0 if name in self.whole else start
        if start and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        cut = self.cuts.get(name)
        end = start + cut.pop(0) if cut else len(content)
        request.wfile.write(content[start:end])


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        server.address = f"http://127.0.0.1:{running.server_address[1]}"
        yield server
        running.shutdown()
