"""The rule for every name in params.yaml: it becomes a file or a folder on any machine."""

import re
from collections.abc import Iterable

from semiseg.base.errors import UserError

# ASCII letters, digits, "-", "_" and inner dots: the same file name on every file system, shell and web page.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?", re.ASCII)
LONGEST = 100  # characters
# Names that Windows gives to devices, with any suffix.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
# Folders of data/ that are no dataset; rules of the Snakefile and stages of DVC that are no grid; a folder
# of runs/ that is no recipe.
RESERVED = {
    "datasets": {"archives", "ingredients", "splits"},
    "grids": {"all", "check", "download", "evaluate", "pretrain", "report", "split", "tables", "train"},
    "recipes": {"pretrained"},
}


def check_name(kind: str, name: str) -> None:
    """Raise UserError unless ``name`` can be the name of an entry of params.yaml's map ``kind``."""
    key = f"params.yaml: {kind}: {name!r}"
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UserError(
            f"{key}: a name has at most {LONGEST} letters (a-z, A-Z), digits, '-', '_' and dots, begins with "
            "a letter or a digit and does not end with a dot; rename it"
        )
    if name.partition(".")[0].lower() in DEVICES:
        raise UserError(f"{key}: Windows keeps this name for a device; rename it")
    if name.lower() in RESERVED.get(kind, ()):
        raise UserError(f"{key}: the suite keeps this name for itself; rename it")


def check_names(kind: str, names: Iterable[str]) -> None:
    """Check each name, and that no two differ in case alone, for many file systems would mix them up."""
    seen: dict[str, str] = {}
    for name in names:
        check_name(kind, name)
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise UserError(
                f"params.yaml: {kind}: '{other}' and '{name}' differ in case alone; rename one of them"
            )
