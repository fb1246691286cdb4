"""Weights to start from: torchvision's ImageNet or COCO ones, none, or a file."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.data import archives
from semiseg.models.network import SegmentationNetwork

# torchvision's IMAGENET1K_V1; the digits in a name begin the file's sha256.
IMAGENET = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
# torchvision's DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1: trained on COCO, with the classes of VOC.
COCO = "deeplabv3_resnet101_coco-586e9e4e.pth"
ADDRESS = "https://download.pytorch.org/models"


def load(built: SegmentationNetwork, network: Network) -> None:
    """Load what ``network.weights`` names into ``built``.

    ``imagenet``: torchvision's file for the backbone. ``coco``: the backbone of torchvision's DeepLabv3.
    ``none``: nothing. Else a file's path: a state dict of torchvision's ResNet (its classifier fc is left
    out) or of a whole SegmentationNetwork. Raises UserError for a file that cannot be had or read, or whose
    tensors are not exactly the network's.
    """
    if network.weights == "none":
        return
    if network.weights == "coco":
        path = torchvisions(COCO)
        trunk = {
            name.removeprefix("backbone."): tensor
            for name, tensor in read(path).items()
            if name.startswith("backbone.")
        }
        fill(built.backbone, trunk, path)
        return
    imagenet = network.weights == "imagenet"
    path = torchvisions(IMAGENET[network.backbone]) if imagenet else Path(network.weights)
    tensors = read(path)
    if any(name.startswith("backbone.") for name in tensors):
        fill(built, tensors, path)
    else:
        trunk = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        fill(built.backbone, trunk, path)


def torchvisions(name: str) -> Path:
    """torchvision's file of that name, found among the archives or fetched; its digest is checked."""
    address = f"{ADDRESS}/{name}"
    path = archives.find(name) or archives.fetch(name, [address], sha256=None)
    digest = archives.digest(path)
    if not digest.startswith(Path(name).stem.rpartition("-")[2]):
        raise UserError(
            f"{path}: its sha256 begins with {digest[:8]}, so it is not torchvision's {name}; "
            f"remove it and put {address} in its place"
        )
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict's file, on the CPU, read without running code from it."""
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
    """Load ``tensors`` into ``module``; a UserError names those that are missing, unknown or misshapen."""
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
