import io
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import archives, prepared, sources
from semiseg.data.archives import Download
from semiseg.data.decoding import decode_image
from semiseg.data.sources import cityscapes
from tests import releases
from tests.releases import Files, Server

CITYSCAPES = parameters.Dataset(
    "cityscapes",
    tuple(f"class {place}" for place in range(19)),
    options=releases.published(releases.CITY_TRAIN, releases.CITY_VAL),
)
PLACE = "train/aachen/aachen_000000_000019"
# cityscapesscripts.download.downloader, as far as it is called: it asks for a login, then gives a package.
DOWNLOADER = """
import getpass, json, os, urllib.request
from builtins import input
from types import SimpleNamespace

appdirs = SimpleNamespace(user_data_dir=lambda name, author: os.path.join(os.environ["STORED"], name, author))

def login():
    stored = os.path.join(appdirs.user_data_dir(__name__.split(".")[0], "cityscapes"), "credentials.json")
    if os.path.isfile(stored):
        login = json.load(open(stored))
        if login["password"] != "secret":
            os.remove(stored)
            raise Exception("Bad credentials.")
        return login["username"], login["password"]
    session = input("Cityscapes username or email address: "), getpass.getpass("Cityscapes password: ")
    assert input("Store credentials unencrypted in 'x' [y/N]: ") == "n"
    if session[1] != "secret":
        raise Exception("Bad credentials. " + session[1])
    return session

def download_packages(*, session, package_names, destination_path, resume=False):
    assert session == ("me", "secret")
    for name in package_names:
        with open(os.path.join(destination_path, name), "ab" if resume else "wb") as file:
            start = file.tell()
            headers = {"Range": f"bytes={start}-"}
            request = urllib.request.Request(os.environ["SERVED"] + name, headers=headers)
            with urllib.request.urlopen(request) as answer:
                while chunk := answer.read(100):
                    file.write(chunk)
                if file.tell() - start < int(answer.headers["Content-Length"]):
                    raise Exception("connection broken")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Enter an empty working directory without an account or cityscapesScripts."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEMISEG_ARCHIVES", cityscapes.USER, cityscapes.PASSWORD):
        monkeypatch.delenv(name, raising=False)
    forget()
    # Accept any size and digest: each test has archives of its own.
    monkeypatch.setattr(cityscapes, "DOWNLOADS", dict.fromkeys(cityscapes.DOWNLOADS, Download()))
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cityscapesscripts"]:
        del sys.modules[name]


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Install a stand-in for cityscapesScripts, and serve both archives to it."""
    package = project / "site" / "cityscapesscripts" / "download"
    package.mkdir(parents=True)
    (package / "downloader.py").write_text(DOWNLOADER)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(project / "site")
    monkeypatch.setenv("STORED", str(project / "stored"))
    with releases.serving() as serving:
        serving.files = releases.cityscapes_archives()
        monkeypatch.setenv("SERVED", f"{serving.address}/")
        yield serving


def put(files: Files) -> None:
    Path("data/archives").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Path("data/archives", name).write_bytes(content)


def left() -> list[str]:
    return sorted(str(path) for path in Path("data").rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.usefixtures("project")
def test_the_archives_are_prepared() -> None:
    put(releases.cityscapes_archives())
    dataset = sources.prepare("cityscapes", CITYSCAPES)
    assert list(dataset.ids("train")) == releases.CITY_TRAIN
    assert list(dataset.ids("val")) == releases.CITY_VAL
    assert len(list(Path("data/cityscapes/images").iterdir())) == 8
    for each in releases.CITY_TRAIN + releases.CITY_VAL:
        labels = releases.label_ids(each)
        expected = [[cityscapes.TRAIN_IDS.get(int(label), 255) for label in row] for row in labels]
        with Image.open(dataset.mask_path(each)) as mask:
            assert np.array(mask).tolist() == expected


def test_the_19_classes_are_those_that_the_benchmark_scores() -> None:
    assert list(cityscapes.TRAIN_IDS.values()) == list(range(19))
    # labels.py ignores in evaluation: void (0 to 6), parking, rail track, guard rail, bridge, tunnel,
    # polegroup, caravan, trailer.
    ignored = {*range(7), 9, 10, 14, 15, 16, 18, 29, 30}
    assert set(cityscapes.TRAIN_IDS) == set(range(cityscapes.LABEL_IDS)) - ignored
    assert (cityscapes.Config().train, cityscapes.Config().val) == (2975, 500)


@pytest.mark.usefixtures("project")
def test_images_are_kept_uncompressed_with_the_same_pixels() -> None:
    release = releases.cityscapes_archives()
    Path("data/archives").mkdir(parents=True)
    for name, content in release.items():
        Path("data/archives", name).write_bytes(content)
    sources.prepare("cityscapes", CITYSCAPES)
    with zipfile.ZipFile(io.BytesIO(release[cityscapes.IMAGES])) as archive:
        png = Image.open(archive.open(f"leftImg8bit/{PLACE}_leftImg8bit.png"))
    dataset = prepared.open_dataset("cityscapes", CITYSCAPES)
    path = dataset.image_path(Path(PLACE).name)
    assert path.stat().st_size == len("P6\n64 48\n255\n") + 64 * 48 * 3
    assert np.array_equal(decode_image(path), np.array(png))
    assert not any(dataset.folder.rglob("*leftImg8bit*"))


@pytest.mark.usefixtures("project")
def test_without_archives_and_account_one_line_says_what_to_do() -> None:
    with pytest.raises(UserError) as refusal:
        sources.prepare("cityscapes", CITYSCAPES)
    message = str(refusal.value)
    assert "\n" not in message
    for words in (cityscapes.IMAGES, "data/archives/", cityscapes.USER, cityscapes.PASSWORD, "csDownload"):
        assert words in message
    assert left() == []


@pytest.mark.usefixtures("server")
def test_cityscapes_scripts_without_an_account_say_the_same() -> None:
    with pytest.raises(UserError, match="Cityscapes needs an account"):
        sources.prepare("cityscapes", CITYSCAPES)


def test_the_account_of_the_environment_fetches_them(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cityscapes.USER, "me")
    monkeypatch.setenv(cityscapes.PASSWORD, "wrong-and-secret")
    with pytest.raises(UserError, match=r"Bad credentials\. \*\*\*") as refusal:
        sources.prepare("cityscapes", CITYSCAPES)
    assert "wrong-and-secret" not in str(refusal.value)
    assert left() == []
    forget()
    monkeypatch.setenv(cityscapes.PASSWORD, "secret")
    monkeypatch.setattr(cityscapes, "DOWNLOADS", server.downloads())
    sources.prepare("cityscapes", CITYSCAPES)
    assert prepared.is_prepared("cityscapes", CITYSCAPES)
    assert not Path("data/archives/.cityscapes.partial").exists()
    assert "secret" not in "".join(capfd.readouterr())
    assert not any(b"secret" in path.read_bytes() for path in Path("data").rglob("*") if path.is_file())


def test_the_stored_login_fetches_them_and_goes_on_where_it_stopped(
    server: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = project / "stored/cityscapesscripts/cityscapes/credentials.json"
    login.parent.mkdir(parents=True)
    login.write_text('{"username": "me", "password": "secret"}')
    server.cuts[cityscapes.IMAGES] = [700]
    with pytest.raises(UserError, match=rf"could not fetch {cityscapes.IMAGES} \(.*\); try again"):
        sources.prepare("cityscapes", CITYSCAPES)
    assert left() == [f"data/archives/.cityscapes.partial/{cityscapes.IMAGES}"]
    monkeypatch.setattr(cityscapes, "DOWNLOADS", server.downloads())
    sources.prepare("cityscapes", CITYSCAPES)
    assert server.asked[:2] == [(cityscapes.IMAGES, 0), (cityscapes.IMAGES, 700)]


def test_the_environment_goes_before_a_stored_login(
    server: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = project / "stored/cityscapesscripts/cityscapes/credentials.json"
    login.parent.mkdir(parents=True)
    login.write_text('{"username": "me", "password": "of yesterday"}')
    monkeypatch.setenv(cityscapes.USER, "me")
    monkeypatch.setenv(cityscapes.PASSWORD, "secret")
    monkeypatch.setattr(cityscapes, "DOWNLOADS", server.downloads())
    sources.prepare("cityscapes", CITYSCAPES)
    assert prepared.is_prepared("cityscapes", CITYSCAPES)
    assert login.is_file()
    monkeypatch.delenv(cityscapes.PASSWORD)
    forget()
    Path("data/archives", cityscapes.MASKS).unlink()
    with pytest.raises(UserError, match=r"could not fetch .* \(Bad credentials\.\)"):
        sources.prepare("again", CITYSCAPES)


def test_a_package_that_is_whole_already_is_not_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cityscapes.USER, "me")
    monkeypatch.setenv(cityscapes.PASSWORD, "secret")
    place = Path("data/archives/.cityscapes.partial")
    place.mkdir(parents=True)
    for name, content in server.files.items():
        (place / name).write_bytes(content)  # the leftovers of a process that was killed at the end
    monkeypatch.setattr(cityscapes, "DOWNLOADS", server.downloads())
    sources.prepare("cityscapes", CITYSCAPES)
    assert server.asked == []
    assert not place.exists()


def spoiled(name: str) -> Files:
    """Return an archive with one byte of a file changed, which its check sum tells."""
    content = bytearray(releases.cityscapes_archives()[name])
    content[len(content) // 3] ^= 255
    return {name: bytes(content)}


def with_member(name: str, mode: int = stat.S_IFREG) -> Files:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o644) << 16
    return {cityscapes.IMAGES: releases.zipped(releases.cityscapes_files()[0], (info, b"../../../../x"))}


def with_mask(content: bytes | None) -> Files:
    masks = releases.cityscapes_files()[1]
    if content is None:
        del masks[f"gtFine/{PLACE}_gtFine_labelIds.png"]
    else:
        masks[f"gtFine/{PLACE}_gtFine_labelIds.png"] = content
    return {cityscapes.MASKS: releases.zipped(masks)}


def renamed(old: str, new: str) -> Files:
    """Return both archives with an image and its masks under another name."""
    return {
        name: releases.zipped({member.replace(old, new): content for member, content in files.items()})
        for name, files in zip(
            (cityscapes.IMAGES, cityscapes.MASKS), releases.cityscapes_files(), strict=True
        )
    }


END = "_leftImg8bit.png"
BAD: dict[str, tuple[Callable[[], Files], str]] = {
    "truncated": (
        lambda: {cityscapes.IMAGES: releases.cityscapes_archives()[cityscapes.IMAGES][:-90]},
        r"leftImg8bit_trainvaltest\.zip: broken or cut off",
    ),
    "a byte changed": (lambda: spoiled(cityscapes.IMAGES), "broken or cut off"),
    "another": (lambda: {cityscapes.MASKS: releases.zipped({"a": b""})}, "holds no folder gtFine"),
    "a parent": (
        lambda: with_member(f"leftImg8bit/train/../../../../x{END}"),
        "refused for an unsafe member",
    ),
    "a link": (lambda: with_member(f"leftImg8bit/train/a/x{END}", stat.S_IFLNK), "an unsafe member"),
    "a device": (lambda: with_member(f"leftImg8bit/train/a/x{END}", stat.S_IFCHR), "an unsafe member"),
    "an image too many": (lambda: with_member(f"leftImg8bit/train/a/x{END}"), "train has 7 images, 6 were"),
    "another image": (
        lambda: renamed("aachen_000000_000019", "aachen_000000_000022"),
        "not the releases .train has other images than were published",
    ),
    "no mask": (lambda: with_mask(None), r"aachen_000000_000019_gtFine_labelIds\.png: unreadable mask"),
    "another size": (
        lambda: with_mask(releases.png(np.zeros((9, 9), np.uint8))),
        "the mask is 9x9, its image",
    ),
    "an id that is none": (
        lambda: with_mask(releases.png(np.full((48, 64), 34, np.uint8))),
        "holds the value 34",
    ),
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("bad", BAD)
def test_bad_archives_are_refused_in_one_line_and_leave_nothing(bad: str) -> None:
    files, words = BAD[bad]
    put({**releases.cityscapes_archives(), **files()})
    with pytest.raises(UserError, match=words) as refusal:
        sources.prepare("cityscapes", CITYSCAPES)
    assert "\n" not in str(refusal.value)
    assert left() == [f"data/archives/{name}" for name in sorted((cityscapes.IMAGES, cityscapes.MASKS))]


@pytest.mark.usefixtures("project")
def test_an_absolute_member_of_a_zip_lands_inside() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("/top/1.png", b"image")
    Path("a.zip").write_bytes(buffer.getvalue())
    archives.unpack(Path("a.zip"), Path("out"), "top")
    assert Path("out/1.png").read_bytes() == b"image"
