"""Splits: which training images are labelled, as text files of ids."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import DRAWN


@dataclass(frozen=True)
class Split:
    """The ids of one split and seed."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    labelled_sha256: str  # digest of the labelled ids in order, see ids_sha256

    @property
    def labelled_set_sha256(self) -> str:
        """Digest of the labelled ids in any order: equal for lists of the same images."""
        return ids_sha256(sorted(self.labelled))


def ids_sha256(ids: Iterable[str]) -> str:
    """Return the sha256 (hex) of ids in order, one a line: ``grep -v '^# ' labelled.txt | sha256sum``."""
    return hashlib.sha256("".join(f"{each}\n" for each in ids).encode()).hexdigest()


def draw(ids: Iterable[str], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose ``count`` labelled ids; returns (labelled, unlabelled), in the order of the draw.

    The order is that of sha256("<seed>:<id>"), the same on every platform and for every order of ``ids``; a
    larger count includes a smaller one. Raises ValueError for a count outside [1, number of ids] or a
    repeated id.
    """
    ordered = sorted(ids, key=lambda each: hashlib.sha256(f"{seed}:{each}".encode()).hexdigest())
    if len(set(ordered)) != len(ordered):
        raise ValueError("an id stands twice in the list")
    if not 1 <= count <= len(ordered):
        raise ValueError(f"{count} labelled images asked for, of {len(ordered)}")
    return tuple(ordered[:count]), tuple(ordered[count:])


def write(
    name: str, seed: int, ids: Iterable[str], count: int, dataset: str, without_mask: Iterable[str] = ()
) -> Split:
    """Draw a split of ``dataset``'s training ``ids`` and write labelled.txt and unlabelled.txt.

    Images ``without_mask`` are always unlabelled. Raises UserError if there are fewer than ``count`` ids.
    """
    try:
        labelled, unlabelled = draw(ids, count, seed)
    except ValueError as error:
        raise UserError(f"params.yaml: splits: {name}: {error}") from None
    origin = f"family: {DRAWN}; dataset: {dataset}; seed: {seed}"
    return write_lists(name, seed, origin, labelled, (*unlabelled, *without_mask))


def write_lists(
    name: str, seed: int, origin: str, labelled: tuple[str, ...], unlabelled: tuple[str, ...]
) -> Split:
    """Write labelled.txt and unlabelled.txt, each headed by ``origin``, its count and its digest.

    If every image is labelled, the unlabelled list holds them all as well: the papers' full setting.
    """
    folder = paths.split(name, seed)
    for file, listed in (("labelled", labelled), ("unlabelled", unlabelled or labelled)):
        header = f"# {origin}; {file}: {len(listed)}; sha256 of the ids: {ids_sha256(listed)}\n"
        write_text(folder / f"{file}.txt", header + "".join(f"{each}\n" for each in listed))
    return read(name, seed)


def read(name: str, seed: int) -> Split:
    """Read a written split.

    Raises UserError with the command that writes it if it is absent, broken or edited.
    """
    folder = paths.split(name, seed)
    labelled, unlabelled = folder / "labelled.txt", folder / "unlabelled.txt"
    try:
        ids = _read_list(labelled)
        return Split(ids, _read_list(unlabelled), ids_sha256(ids))
    except FileNotFoundError as error:
        said = f"{error.filename}: not there"
    except UserError as error:
        said = str(error)
    raise UserError(f"{said}; write it with: python pipeline/split.py {name} {seed}")


def _read_list(path: Path) -> tuple[str, ...]:
    """Read a list and compare its ids with the digest in its first line."""
    ids = read_ids(path)
    if not ids:
        raise UserError(f"{path}: a list without an id")
    first_line, _, _ = path.read_text(encoding="utf-8").partition("\n")
    stated = first_line.rpartition("sha256 of the ids: ")[2]
    if stated != ids_sha256(ids):
        raise UserError(f"{path}: its ids are not those of the digest in its first line")
    return ids


def read_ids(path: Path) -> tuple[str, ...]:
    """Read a list of image ids, one a line.

    Raises FileNotFoundError, and UserError for a file that is not text in UTF-8 and for ids that a list
    cannot hold.
    """
    ids = read_lines(path)
    check_ids(ids, path)
    return ids


def check_ids(ids: Sequence[str], path: Path) -> None:
    """Raise UserError for an id that a list cannot hold; ``path`` is what the message names.

    Such an id is repeated, begins with ``#``, begins or ends with a blank, or is not the plain path of a file
    below a folder.
    """
    for each in ids:
        if each.startswith("#"):
            raise UserError(
                f"{path}: '{each}' begins with '#', which begins a comment; put a blank behind the '#' of a "
                "comment, or rename the image"
            )
        if each != each.strip():
            raise UserError(f"{path}: '{each}' begins or ends with a blank; rename the image")
        if not each.isprintable():
            raise UserError(f"{path}: {each!r} holds a character that cannot be seen; rename the image")
        place = PurePosixPath(each)
        if str(place) != each or place.is_absolute() or ".." in place.parts:
            raise UserError(f"{path}: '{each}' is not the plain path of an image below a folder; correct it")
    if len(set(ids)) < len(ids):
        twice = next(each for each, count in Counter(ids).items() if count > 1)
        raise UserError(f"{path}: '{twice}' is listed twice; list each image once")


def read_lines(path: Path) -> tuple[str, ...]:
    """Read the lines of a text file in UTF-8, stripped, without blank ones and comments (``# …``).

    A byte-order mark is dropped. Raises FileNotFoundError, or UserError for a file that is not such text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path}: not a text file in UTF-8; save it as one")
    lines = (line.strip() for line in text.split("\n"))
    return tuple(line for line in lines if line and line != "#" and not line.startswith("# "))
