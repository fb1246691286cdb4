"""Archives: found on disk or fetched, checked before they are used, unpacked without trust."""

import contextlib
import errno
import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Never

from filelock import FileLock
from tqdm import tqdm

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.progress import bar

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without an answer
ATTEMPTS = 5  # at one address, as long as each brings more bytes
# Errors of this machine, which no other address would mend.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class CutOffError(UserError):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class Download:
    """A file to fetch from the first address that gives it whole, and how to recognise it."""

    addresses: tuple[str, ...] = ()
    size: int | None = None  # bytes
    md5: str | None = None  # hex
    sha256: str | None = None  # hex


def obtain(name: str, download: Download) -> Path:
    """Find the archive ``name`` on disk or fetch it, and check its size and digest."""
    found = paths.find_archive(name)
    if found is None:
        return fetch(name, download.addresses, download.sha256, download.md5, download.size)
    check(found, download)
    return found


def fetch(
    name: str,
    addresses: Iterable[str],
    sha256: str | None,
    md5: str | None = None,
    size: int | None = None,
) -> Path:
    """Fetch data/archives/``name`` from the first address that gives it, and check its size and digest.

    The file appears whole or not at all. A download that is cut off is kept beside it under a hidden name and
    continued by the next attempt, provided that a digest can tell whether the parts fit. Raises UserError
    naming the addresses, the file and the folder to put it in; OSError if the file cannot be written.
    """
    download = Download(tuple(addresses), size, md5, sha256)
    target = paths.ARCHIVES / name
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    refusals = []
    with FileLock(paths.DATA / f".{name.replace('/', '-')}.lock"):
        if target.is_file():  # another process has fetched it meanwhile
            return target
        for address in download.addresses:
            try:
                _fetch_from(address, partial, download)
            except (UserError, OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in MACHINE:
                    partial.unlink(missing_ok=True)
                    raise OSError(error.errno, error.strerror, str(target)) from None
                refusals.append(f"{address} ({str(error) or type(error).__name__})")
            else:
                partial.replace(target)
                return target
        if partial.is_file() and not _has_digest(download):
            partial.unlink()
    tried = f"could not fetch {'; '.join(refusals)}" if refusals else f"{name}: not there, and has no address"
    raise UserError(f"{tried}; put {name} into {paths.ARCHIVES}/")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check(path: Path, download: Download) -> None:
    """Raise UserError unless the file has the size and the digest of ``download``."""
    try:
        _check(path, download)
    except UserError as error:
        raise UserError(f"{path}: {error}; remove it and fetch it again") from None


def check_digest(path: Path, sha256: str) -> None:
    """Raise UserError unless the file has this sha256."""
    check(path, Download(sha256=sha256))


def check_room(folder: Path, *archives: Path, converted: int = 0) -> None:
    """Raise UserError unless the disk of ``folder`` has room for the archives' contents and what they become.

    The archives' own sizes are the measure, because images and masks are compressed already; ``converted`` is
    the size in bytes of files that are made from them.
    """
    needed, free = sum(path.stat().st_size for path in archives) + converted, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: unpacking needs {_gigabytes(needed)}, its disk has {_gigabytes(free)} free; free "
            f"space, or make {paths.DATA} or the dataset's folder in it a symbolic link to a larger disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def unpack(
    archive: Path, folder: Path, below: str, wanted: Callable[[str], bool] = lambda member: True
) -> None:
    """Unpack what a tar or zip holds below its folder ``below``, at any depth, into ``folder``.

    Only members whose path below it is ``wanted`` are unpacked. Raises UserError for a file that is cut off
    or is neither a tar nor a zip, if there is nothing to unpack, and for a member that would leave
    ``folder``, is a device, or (in a zip) a link.
    """
    try:
        if zipfile.is_zipfile(archive):
            found = _unpack_zip(archive, folder, below, wanted)
        else:
            found = _unpack_tar(archive, folder, below, wanted)
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused for an unsafe member ({error}); get it anew") from None
    except (
        tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
        NotImplementedError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())
        raise UserError(f"{archive}: broken or cut off ({said}); remove it and fetch it again") from None
    if not found:
        raise UserError(f"{archive}: holds no folder {below}; is it another archive?")


def _unpack_tar(archive: Path, folder: Path, below: str, wanted: Callable[[str], bool]) -> bool:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python unpacks archives without checking them; use 3.11.4 or later")
    found = False
    size = archive.stat().st_size
    with archive.open("rb") as file, tarfile.open(fileobj=file) as tar, _unpacking(archive, size) as progress:
        for member in tar:
            progress.update(file.tell() - progress.n)
            place = _below(member.name, below)
            if place is not None and wanted(place):
                member.name = place
                tar.extract(member, folder, filter="data")
                found = True
        while tar.fileobj is not None and tar.fileobj.read(CHUNK):
            pass  # to the end, where a compressed archive has its check sum
    return found


def _unpack_zip(archive: Path, folder: Path, below: str, wanted: Callable[[str], bool]) -> bool:
    found = False
    size = archive.stat().st_size
    with zipfile.ZipFile(archive) as file, _unpacking(archive, size) as progress:
        for member in file.infolist():
            progress.update(member.header_offset - progress.n)
            place = _below(member.filename, below)
            if place is None or not wanted(place):
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if ".." in PurePosixPath(place).parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive}: refused for an unsafe member ({member.filename}); get it anew")
            target = folder / place
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, target.open("wb") as written:
                shutil.copyfileobj(source, written, CHUNK)
            found = True
    return found


def _unpacking(archive: Path, size: int) -> "tqdm[Never]":
    return bar(f"unpack {archive.name}", size, "B", scale=True)


def _below(member: str, below: str) -> str | None:
    """Return the path of ``member`` below the folder ``below``; None for the folder and other members."""
    parts = PurePosixPath(member).parts
    if below not in parts:
        return None
    place = parts[parts.index(below) + 1 :]
    return str(PurePosixPath(*place)) if place else None


def _fetch_from(address: str, partial: Path, download: Download) -> None:
    """Complete ``partial`` from where it ends; remove it if it turns out to be another file."""
    for attempt in range(1, ATTEMPTS + 1):
        start = _size(partial) if _has_digest(download) else 0
        try:
            _transfer(address, partial, start, download)
        except CutOffError:
            if attempt == ATTEMPTS or not _has_digest(download) or _size(partial) <= start:
                raise
            continue
        try:
            _check(partial, download)
            return
        except UserError:
            partial.unlink()
            if start == 0 or attempt == ATTEMPTS:  # else the beginning, from another address, may be wrong
                raise


def _transfer(address: str, partial: Path, start: int, download: Download) -> None:
    """Append what follows the first ``start`` bytes, or write the whole file if the server sends it."""
    if start and start == download.size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.headers.get("Content-Range", "").partition("-")[0] != f"bytes {start}":
                start = 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            _refuse_size(total, start, partial, download)
            with partial.open("ab" if start else "wb") as file, _fetching(partial, total, start) as progress:
                _copy(answer, file, progress, start, total or download.size)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return  # nothing follows: the check tells whether the file is whole
        raise UserError(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise UserError(str(error.reason)) from None


def _copy(
    answer: http.client.HTTPResponse, file: BinaryIO, progress: "tqdm[Never]", done: int, expected: int | None
) -> None:
    """Copy to the end or just beyond ``expected`` bytes; ``done`` bytes are there already."""
    while expected is None or done <= expected:
        try:
            chunk = answer.read(CHUNK)
        except (http.client.IncompleteRead, ConnectionError, TimeoutError) as error:
            raise CutOffError(f"cut off after {done} bytes ({type(error).__name__})") from None
        if not chunk:
            break
        file.write(chunk)
        progress.update(len(chunk))
        done += len(chunk)
    if expected is not None and done < expected:
        raise CutOffError(f"cut off at {done} of {expected} bytes")


def _refuse_size(total: int | None, start: int, partial: Path, download: Download) -> None:
    """Refuse a file of another size, or one too large for the disk, before anything is written."""
    if total is not None and download.size is not None and total != download.size:
        raise UserError(f"it has {total} bytes, expected {download.size}")
    if total is not None and shutil.disk_usage(partial.parent).free < total - start:
        raise OSError(errno.ENOSPC, f"No space left on device ({total - start} bytes are needed)")


def _fetching(partial: Path, total: int | None, start: int) -> "tqdm[Never]":
    name = partial.name.removeprefix(".").removesuffix(".partial")
    return bar(f"fetch {name}", total, "B", start, scale=True)


def _check(path: Path, download: Download) -> None:
    size = path.stat().st_size
    if download.size is not None and size != download.size:
        raise UserError(f"it has {size} bytes, expected {download.size}")
    for algorithm, expected in (("sha256", download.sha256), ("md5", download.md5)):
        if expected is not None and (found := _digest(path, algorithm)) != expected:
            raise UserError(f"its {algorithm} is {found}, expected {expected}")


def _has_digest(download: Download) -> bool:
    return download.sha256 is not None or download.md5 is not None


def _size(partial: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return partial.stat().st_size
    return 0
