"""Archives: found on disk, else fetched; checked before they are used, unpacked without trust."""

import errno
import gzip
import hashlib
import http.client
import lzma
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from semiseg import paths
from semiseg.errors import UserError
from semiseg.files import written_whole

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without an answer
# The machine's own troubles: no other address would mend them.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def folders() -> list[Path]:
    """Where archives are looked for: data/archives/, and the folder that SEMISEG_ARCHIVES names.

    Raises UserError where that is no folder.
    """
    named = os.environ.get("SEMISEG_ARCHIVES")
    if named and not Path(named).is_dir():
        raise UserError(f"SEMISEG_ARCHIVES: {named} is not a folder; correct or unset it")
    return [paths.ARCHIVES, *([Path(named)] if named else [])]


def find(name: str) -> Path | None:
    """The archive ``name`` on disk; None where there is none."""
    return next((folder / name for folder in folders() if (folder / name).is_file()), None)


def fetch(name: str, addresses: Iterable[str], sha256: str | None) -> Path:
    """Fetch data/archives/``name`` from the first of ``addresses`` that gives it, and check its digest.

    The file is there whole or not at all. Raises UserError naming the addresses, the file and the folder to
    put it in; OSError where it cannot be written.
    """
    target, refusals = paths.ARCHIVES / name, []
    for address in addresses:
        try:
            with written_whole(target) as partial:
                _download(address, partial)
                found = digest(partial)
                if sha256 is not None and found != sha256:
                    raise UserError(f"its sha256 is {found}, expected {sha256}")
            return target
        except (UserError, OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in MACHINE:
                raise
            refusals.append(f"{address} ({str(error) or type(error).__name__})")
    raise UserError(f"could not fetch {'; '.join(refusals)}; put {name} into {paths.ARCHIVES}/")


def digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, sha256: str) -> None:
    """Raises UserError when the file's sha256 is another."""
    found = digest(path)
    if found != sha256:
        raise UserError(f"{path}: its sha256 is {found}, expected {sha256}; remove it and fetch it again")


def unpack(archive: Path, folder: Path, below: str) -> None:
    """Unpack what lies below the member ``below`` (a path, wherever it begins) of a tar into ``folder``.

    Raises UserError for an archive that is cut off or not a tar, one with nothing below ``below``, and a
    member that would leave ``folder`` or is a device.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python unpacks archives without checking them; use 3.11.4 or later")
    found = False
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if below not in parts:
                    continue
                member.name = str(PurePosixPath(*parts[parts.index(below) + 1 :]))
                if member.name != ".":
                    tar.extract(member, folder, filter="data")
                    found = True
            while tar.fileobj is not None and tar.fileobj.read(CHUNK):
                pass  # to the end, where a compressed archive has its check sum
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused for an unsafe member ({error}); get it anew") from None
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive}: broken or cut off ({error}); remove it and fetch it again") from None
    if not found:
        raise UserError(f"{archive}: holds no folder {below}; is it another archive?")


def _download(address: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, target.open("wb") as file:
            length = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm(total=length, unit="B", unit_scale=True, desc=target.name, disable=None) as bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if length is not None and target.stat().st_size != length:
            raise UserError(f"cut off at {target.stat().st_size} of {length} bytes")
    except urllib.error.HTTPError as error:
        raise UserError(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise UserError(str(error.reason)) from None
