"""Put a newly prepared dataset in the place of an old one, without touching a file that is not the suite's.

A dataset is made in a hidden folder inside its own, so that both lie on one disk even if data/<name> is a
symbolic link. What was there is removed file by file as its ``files.txt`` says, the new files are moved up,
and the manifest comes last. Wherever this is cut off, ``files.txt`` names what is there, no manifest calls it
whole, and the next start begins again.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semiseg.base.errors import UserError
from semiseg.data.prepared import FILES, MANIFEST, ORIGIN, read_files

PARTIAL = ".semiseg.partial"  # in a dataset's folder: where the next one is made


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yield an empty folder; what is in it on success replaces the dataset in ``target``.

    On any error ``target`` is as it was. Raises UserError, touching nothing, if ``target`` is no folder or
    holds a file that this suite did not write.
    """
    check_replaceable(target)
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    partial = target / PARTIAL
    discard_partial(target)
    partial.mkdir()
    try:
        yield partial
        remove_prepared(target)
        _move_up(partial, target)
    finally:
        discard_partial(target)
        if made:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                target.rmdir()


def discard_partial(target: Path) -> None:
    """Remove the leftovers of a failed or killed preparation from ``target``."""
    shutil.rmtree(target / PARTIAL, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` exists but is no folder, such as a link whose disk is gone."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"{folder}: a symbolic link to {folder.readlink()}, which is not there; mend the link"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: not a folder; move it away")


def check_replaceable(folder: Path) -> None:
    """Raise UserError if ``folder`` holds a file that its own list of prepared files does not name."""
    check_folder(folder)
    nothing = f"nothing was touched; move {folder} away or choose another name for the dataset"
    if (folder / MANIFEST).is_file() and not (folder / FILES).is_file():
        raise UserError(f"{folder}: prepared by a revision that did not list its files in {FILES}; {nothing}")
    found = foreign(folder)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{folder / found[0]}{more}: not written by this suite, which replaces only its own files; "
            f"{nothing}"
        )


def foreign(folder: Path) -> list[str]:
    """Return the files and links below ``folder`` that were not prepared there, by their path in it."""
    own = {FILES, MANIFEST, ORIGIN, *read_files(folder)} if (folder / FILES).is_file() else set()
    found = []
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and PARTIAL in folders:
            folders.remove(PARTIAL)
        links = [each for each in folders if (Path(place) / each).is_symlink()]
        found += [(Path(place) / each).relative_to(folder).as_posix() for each in (*links, *files)]
    return sorted(each for each in found if each not in own)


def remove_prepared(folder: Path) -> None:
    """Remove the files that ``folder`` lists as prepared, and folders that are empty without them."""
    (folder / MANIFEST).unlink(missing_ok=True)
    names = read_files(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(parents, key=lambda each: len(each.parts), reverse=True):
        with contextlib.suppress(OSError):  # it is not empty, or is not there
            (folder / parent).rmdir()
    (folder / ORIGIN).unlink(missing_ok=True)
    (folder / FILES).unlink(missing_ok=True)


def _move_up(partial: Path, target: Path) -> None:
    """Move the files that ``partial`` lists to ``target``, the list first and the manifest last."""
    origin = [ORIGIN] if (partial / ORIGIN).is_file() else []
    for name in (FILES, *read_files(partial), *origin, MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(target / name)
