"""The sources of datasets: each file has a Config, a REVISION and a function ``prepare``.

``prepare(folder, dataset, options)`` writes the dataset into the empty ``folder``.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.names import check_name
from semiseg.base.parameters import Dataset
from semiseg.base.tree import from_tree
from semiseg.data import prepared, replacing, verification
from semiseg.data.prepared import PreparedDataset
from semiseg.data.sources import folder


def prepare(name: str, dataset: Dataset) -> PreparedDataset:
    """Prepare the dataset ``name`` in data/<name>, unless it is already prepared and unchanged.

    An existing dataset is read again, and prepared anew if one of its files, the settings, the source's
    revision or a user's own folder has changed. A second start waits for the first. Raises UserError for a
    name, a folder or options that cannot be used and for a list that cannot be scored, and passes on the
    source's errors; data/<name> is then as before.
    """
    check_name("datasets", name)
    target = paths.dataset(name)
    source = _module(dataset)
    options = _options(name, dataset)
    _check_apart(dataset, target)
    replacing.check_folder(paths.DATA)
    paths.DATA.mkdir(exist_ok=True)
    with FileLock(paths.DATA / f".{name}.lock"):
        if _is_current(name, dataset, source.REVISION) and _is_sound(name, dataset):
            replacing.discard_partial(target)
        else:
            with replacing.replaced(target) as empty:
                source.prepare(empty, dataset, options)
    found = prepared.open_dataset(name, dataset)
    prepared.check_scored(found, dataset.evaluate)
    return found


def check_options(datasets: Mapping[str, Dataset]) -> None:
    """Raise UserError for an option that the source of its dataset does not take."""
    for name, dataset in datasets.items():
        _options(name, dataset)


def _module(dataset: Dataset) -> ModuleType:
    return importlib.import_module(f"semiseg.data.sources.{dataset.source}")


def _options(name: str, dataset: Dataset) -> Any:
    """Return the Config of a dataset's source."""
    return from_tree(_module(dataset).Config, dataset.options, f"params.yaml: datasets: {name}: options")


def user_folder(dataset: Dataset) -> Path | None:
    """Return the user's own folder that a dataset is made from; None for every other source."""
    path = dataset.options.get("path") if dataset.source == "folder" else None
    return None if path is None else folder.own_folder(str(path))


def fingerprint(dataset: Dataset) -> str | None:
    """Return the sha256 (hex) of names, sizes and times of the files in a user's folder, without opening any.

    Another fingerprint means that the dataset must be prepared again. None for other sources, and on a
    machine without the folder, which can only use what is prepared.
    """
    if user_folder(dataset) is None:
        return None
    options: folder.Config = from_tree(folder.Config, dataset.options, "params.yaml: datasets: options")
    return folder.fingerprint(options)


def _check_apart(dataset: Dataset, target: Path) -> None:
    """Refuse a user's folder that is the dataset's own, lies in it or holds it, through links too."""
    own = user_folder(dataset)
    if own is None:
        return
    if not are_apart(own, target):
        raise UserError(
            f"{own}: your folder and {target}, where the suite keeps its copy, must lie apart; move your "
            "folder, or give the dataset another name"
        )


def are_apart(one: Path, other: Path) -> bool:
    """Return whether two folders are not the same, and neither lies in the other, through links too."""
    one, other = (Path(os.path.realpath(each)) for each in (one, other))  # follows links in a circle too
    return one != other and one not in other.parents and other not in one.parents


def _is_current(name: str, dataset: Dataset, revision: int) -> bool:
    """Return whether it exists, made from these settings and files by this revision of its source."""
    try:
        manifest = prepared.read_manifest(paths.dataset(name))
    except UserError:  # a broken one; its list of files decides whether it may be replaced
        return False
    return (
        manifest is not None
        and prepared.is_prepared(name, dataset)
        and manifest["source"].get("revision") == revision
        and fingerprint(dataset) in (None, prepared.read_origin(paths.dataset(name)).get("fingerprint"))
    )


def _is_sound(name: str, dataset: Dataset) -> bool:
    """Return whether every prepared file is unchanged; print the first change to stderr."""
    found = list(verification.changed(prepared.open_dataset(name, dataset)))
    if found:
        print(f"{found[0]}; {len(found)} such in all: preparing '{name}' again", file=sys.stderr)
    return not found
