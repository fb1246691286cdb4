"""Splits: which training images are labelled, as text files of ids."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from semiseg import paths
from semiseg.config import DRAWN
from semiseg.errors import UserError
from semiseg.files import write_text


@dataclass(frozen=True)
class Split:
    """The ids of one split and seed, and the sha256 of labelled.txt."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    sha256: str


def draw(ids: Iterable[str], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose ``count`` labelled ids; returns (labelled, unlabelled), in the order of the draw.

    The order is that of sha256("<seed>:<id>"): the same on every platform and for every order of ``ids``, and
    a larger count holds the smaller one. Raises ValueError for a count outside [1, number of ids] or an id
    that stands twice.
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

    Images ``without_mask`` are unlabelled in any case. Raises UserError where ``count`` images are not to be
    had.
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
    """Write labelled.txt and unlabelled.txt, each with ``origin`` and its count in its first line.

    Where every image is labelled, the unlabelled list holds them all too: the papers' full setting.
    """
    folder = paths.split(name, seed)
    for file, listed in (("labelled", labelled), ("unlabelled", unlabelled or labelled)):
        header = f"# {origin}; {file}: {len(listed)}\n"
        write_text(folder / f"{file}.txt", header + "".join(f"{each}\n" for each in listed))
    return read(name, seed)


def read(name: str, seed: int) -> Split:
    """Read a written split. Raises UserError with the command that writes it when it is absent or broken."""
    folder = paths.split(name, seed)
    labelled, unlabelled = folder / "labelled.txt", folder / "unlabelled.txt"
    remedy = f"write it with: python pipeline/split.py {name} {seed}"
    try:
        split = Split(
            read_ids(labelled), read_ids(unlabelled), hashlib.sha256(labelled.read_bytes()).hexdigest()
        )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there; {remedy}") from None
    if not split.labelled or not split.unlabelled:
        raise UserError(f"{folder}: a list without an id; {remedy}")
    return split


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids of a text file, one a line; lines that start with # are comments.

    Raises FileNotFoundError, or UserError for a file that is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file of ids; write it anew") from None
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
