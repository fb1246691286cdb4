"""The files that pretrained weights come from, and the digest that identifies them."""

import hashlib
from pathlib import Path

# torchvision's files by (weights, backbone). The eight digits in a name begin the file's sha256.
TORCHVISION = {
    ("imagenet", "resnet18"): "resnet18-f37072fd.pth",  # IMAGENET1K_V1, as are the next two
    ("imagenet", "resnet50"): "resnet50-0676ba61.pth",
    ("imagenet", "resnet101"): "resnet101-63fe2227.pth",
    # DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1: trained on COCO images with VOC's classes
    ("coco", "resnet101"): "deeplabv3_resnet101_coco-586e9e4e.pth",
}
NAMED = ("none", *dict.fromkeys(weights for weights, _ in TORCHVISION))  # every other value is a path


def digest(weights: str, backbone: str) -> str:
    """Return what identifies the weights: the sha256 of their file, or the digits in torchvision's name.

    Returns "none" for random weights, and "absent" for a missing file, which only training refuses.
    """
    if weights == "none":
        return weights
    if weights in NAMED:
        return Path(TORCHVISION[weights, backbone]).stem.rpartition("-")[2]
    path = Path(weights)
    return file_sha256(path) if path.is_file() else "absent"


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
