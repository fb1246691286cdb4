import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.data import archives

BODY = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves /whole; /short and /huge, which promise more than they send; /chunk, which breaks off."""

    def do_GET(self) -> None:
        if self.path == "/whole":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:70_000])
        elif self.path == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 60))
            self.end_headers()
        elif self.path == "/chunk":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"10\r\n" + BODY[:16] + b"\r\nff\r\n" + BODY[:3])
            self.close_connection = True
        else:
            self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    return tmp_path


def files() -> list[str]:
    """Return all files but the locks."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock")


def test_an_archive_is_found_in_the_project_or_in_the_named_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.find_archive("a.tar") is None
    (project / "mine").mkdir()
    (project / "mine/a.tar").touch()
    assert paths.find_archive("a.tar") is None
    monkeypatch.setenv("SEMISEG_ARCHIVES", "mine")
    assert paths.find_archive("a.tar") == Path("mine/a.tar")
    (project / "data/archives").mkdir(parents=True)
    (project / "data/archives/a.tar").touch()
    assert paths.find_archive("a.tar") == Path("data/archives/a.tar")
    monkeypatch.setenv("SEMISEG_ARCHIVES", "nowhere")
    with pytest.raises(UserError, match="SEMISEG_ARCHIVES: nowhere is not a folder"):
        paths.find_archive("a.tar")


def test_a_file_is_fetched_from_the_first_address_that_gives_it(server: str) -> None:
    addresses = [f"{server}/none", f"{server}/short", f"{server}/whole", "http://never.invalid/"]
    path = archives.fetch("a.tar", addresses, SHA256)
    assert path == Path("data/archives/a.tar")
    assert path.read_bytes() == BODY
    assert files() == ["data/archives/a.tar"]


@pytest.mark.parametrize(
    ("place", "words", "sha256"),
    [
        ("none", "HTTP 404", "0000"),
        ("short", "cut off at 70000 of 1280000 bytes", None),
        ("chunk", "IncompleteRead", None),
        ("whole", f"its sha256 is {SHA256}, expected 0000", "0000"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line_and_leaves_nothing(
    server: str, place: str, words: str, sha256: str | None
) -> None:
    address = f"{server}/{place}"
    with pytest.raises(UserError, match=words) as refusal:
        archives.fetch("a.tar", [address], sha256)
    message = str(refusal.value)
    assert address in message
    assert message.endswith("put a.tar into data/archives/")
    assert "\n" not in message
    assert files() == []


def test_no_connection_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="Connection refused"):
        archives.fetch("a.tar", ["http://127.0.0.1:9/a.tar"], None)


def test_a_full_disk_is_not_taken_for_a_bad_address(server: str) -> None:
    Path("data/archives").mkdir(parents=True)
    Path("data/archives/.a.tar.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: 'data/archives/a\.tar'"):
        archives.fetch("a.tar", [f"{server}/whole"], SHA256)
    assert files() == []


def test_what_the_disk_cannot_hold_is_not_begun(server: str) -> None:
    with pytest.raises(OSError, match=rf"No space left on device \({1 << 60} bytes are needed\)"):
        archives.fetch("a.tar", [f"{server}/huge"], SHA256)
    assert files() == []


def test_a_digest_is_checked(project: Path) -> None:
    (project / "a.tar").write_bytes(BODY)
    archives.check_digest(Path("a.tar"), SHA256)
    with pytest.raises(UserError, match=rf"a\.tar: its sha256 is {SHA256}, expected 12; remove it"):
        archives.check_digest(Path("a.tar"), "12")


def test_a_disk_without_room_is_told_before_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "b.zip"):
        Path(name).write_bytes(b"x" * 600)
    usage = shutil.disk_usage(".")
    for free, converted, enough in ((1200, 0, True), (1199, 0, False), (1209, 10, False), (1210, 10, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if enough:
            archives.check_room(Path(), Path("a.tar"), Path("b.zip"), converted=converted)
            continue
        with pytest.raises(UserError, match=r"unpacking needs 0\.0 GB, .* free space") as refusal:
            archives.check_room(Path(), Path("a.tar"), Path("b.zip"), converted=converted)
        assert "\n" not in str(refusal.value)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


def pack(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for each in members:
            tar.addfile(each, io.BytesIO(b"text"))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_only_what_lies_below_the_folder_is_unpacked(name: str) -> None:
    archive = pack(
        Path(name),
        member("top/read.me"),
        member("top/Set/train/1.png"),
        member("top/Set/2.png"),
        member("top/Other/3.png"),
    )
    archives.unpack(archive, Path("out"), "Set")
    assert files() == [name, "out/2.png", "out/train/1.png"]
    with pytest.raises(UserError, match=f"{name}: holds no folder Nothing"):
        archives.unpack(archive, Path("out"), "Nothing")


@pytest.mark.parametrize(
    "hostile",
    [
        member("Set/../../outside"),
        member("Set/link", tarfile.SYMTYPE, "../../outside"),
        member("Set/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("Set/link", tarfile.LNKTYPE, "../outside"),
        member("Set/device", tarfile.CHRTYPE),
        member("Set/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_a_hostile_member_is_refused(hostile: tarfile.TarInfo) -> None:
    archive = pack(Path("a.tar"), hostile)
    Path("in").mkdir()
    with pytest.raises(UserError, match=r"a\.tar: refused for an unsafe member"):
        archives.unpack(archive, Path("in/out"), "Set")
    assert files() == ["a.tar"]


def test_an_absolute_member_lands_inside() -> None:
    archives.unpack(pack(Path("a.tar"), member("/Set/1.png")), Path("out"), "Set")
    assert files() == ["a.tar", "out/1.png"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_broken_archive_is_named(name: str) -> None:
    archive = pack(Path(name), *(member(f"Set/{number}.png") for number in range(9)))
    whole = archive.read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 255
    for content in (b"", b"no tar at all" * 100, whole[: len(whole) // 2 - 100], bytes(spoiled)):
        archive.write_bytes(content)
        if name == "a.tar" and content == bytes(spoiled):
            continue  # a plain tar has no check sum over its files' bytes
        with pytest.raises(UserError, match=f"{name}: "):
            archives.unpack(archive, Path("out"), "Set")
