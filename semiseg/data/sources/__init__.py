"""Where datasets come from: each file has a Config, a REVISION and a function ``prepare``.

``prepare(folder, dataset, options, downloads)`` writes the dataset into the empty ``folder``.
"""

import importlib
import shutil
from collections.abc import Mapping

from filelock import FileLock

from semiseg.base import paths
from semiseg.base.parameters import Dataset, Download
from semiseg.base.tree import from_tree
from semiseg.data import prepared


def prepare(name: str, dataset: Dataset, downloads: Mapping[str, Download] | None = None) -> str:
    """Prepare the dataset ``name`` in data/<name>, unless it is there already; says what is there.

    ``downloads``: where its archives are fetched and what tells them, by the archive's name. The dataset is
    made in a folder beside and renamed when whole, so that what is under its name is complete. A second start
    waits for the first. Raises UserError for options that the source does not know, and what it raises.
    """
    target = paths.dataset(name)
    source = importlib.import_module(f"semiseg.data.sources.{dataset.source}")
    options = from_tree(source.Config, dataset.options, f"params.yaml: datasets: {name}: options")
    paths.DATA.mkdir(exist_ok=True)
    with FileLock(paths.DATA / f".{name}.lock"):
        if not _is_current(name, dataset, source.REVISION):
            partial = target.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                source.prepare(partial, dataset, options, downloads or {})
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    found = prepared.open_dataset(name, dataset)
    manifest = prepared.read_manifest(target)
    assert manifest is not None
    counts = ", ".join(f"{count} {listed}" for listed, count in manifest["counts"].items())
    return f"{found.folder}: {counts} images, {len(found.classes)} classes"


def _is_current(name: str, dataset: Dataset, revision: int) -> bool:
    """Whether it is there, from these settings and by this revision of its source."""
    if not prepared.is_prepared(name, dataset):
        return False
    manifest = prepared.read_manifest(paths.dataset(name))
    return manifest is not None and manifest["source"].get("revision") == revision
