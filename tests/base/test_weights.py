import hashlib
from pathlib import Path

import timm
import torchvision

from semiseg.base import weights


def test_no_weights_have_no_file() -> None:
    assert weights.digest("none", "resnet18") == "none"


def test_published_weights_have_a_digest_and_one_source() -> None:
    for (name, backbone), published in weights.PUBLISHED.items():
        digest = weights.digest(name, backbone)
        assert digest == published.sha256
        assert len(digest) in (8, 64)
        assert int(digest, 16) >= 0
        assert (published.address is None) != (published.package is None)


def test_the_table_is_torchvisions() -> None:
    for (name, backbone), published in weights.PUBLISHED.items():
        if not backbone.startswith("resnet"):
            continue
        if name == "imagenet":
            listed = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
        else:
            listed = torchvision.models.segmentation.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1
        assert listed.url == f"{published.address}/{published.name}"
        assert f"-{published.sha256}.pth" in published.name


def test_the_table_is_timms() -> None:
    for backbone in ("vit_small_patch14_dinov2", "vit_base_patch14_dinov2"):
        published = weights.PUBLISHED["dinov2", f"timm:{backbone}"]
        assert timm.get_pretrained_cfg(backbone).url == f"{published.address}/{published.name}"


def test_names_go_with_their_backbones() -> None:
    assert weights.known("none", "resnet18")
    assert weights.known("some/file.pth", "timm:convnext_tiny")
    assert weights.known("hub", "timm:convnext_tiny")
    assert weights.known("dinov2", "timm:vit_small_patch14_dinov2")
    assert not weights.known("hub", "resnet18")
    assert not weights.known("coco", "resnet18")
    assert not weights.known("imagenet", "timm:convnext_tiny")


def test_a_file_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    content = b"weights" * 100_000
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "one.pth", tmp_path / "deep" / "two.pt"):
        path.write_bytes(content)
        assert weights.digest(str(path), "resnet18") == hashlib.sha256(content).hexdigest()
    (tmp_path / "link.pth").symlink_to(tmp_path / "one.pth")
    assert weights.digest(str(tmp_path / "link.pth"), "resnet18") == hashlib.sha256(content).hexdigest()
    (tmp_path / "one.pth").write_bytes(content + b"!")
    assert weights.digest(str(tmp_path / "one.pth"), "resnet18") != hashlib.sha256(content).hexdigest()


def test_a_file_that_is_absent_has_a_digest_all_the_same(tmp_path: Path) -> None:
    assert weights.digest(str(tmp_path / "absent.pth"), "resnet18") == "absent"
    assert weights.digest(str(tmp_path), "resnet18") == "absent"
