"""Predictions of a user's own images: the numbers of evaluation, and what is refused before any work."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Evaluation, RunConfig
from semiseg.data import prepared, splits
from semiseg.data.palette import voc_palette
from semiseg.evaluation import evaluate, predict, trained
from semiseg.evaluation.predict import Outputs
from semiseg.evaluation.score import OWN_SIZE
from semiseg.models.network import SegmentationNetwork
from tests import miniature
from tests.miniature import CPU
from tests.project import edit
from tests.tiny import tiny_network

CLASSES = ("sky", "road")
WINDOWS = replace(OWN_SIZE, long_side=40, window=24, stride=0.5)


def photograph(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Write noise as a PNG."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path, format="PNG")
    return path


def trained_run(recipe: str, evaluation: Evaluation = OWN_SIZE) -> RunConfig:
    """Train and evaluate a run of the miniature project."""
    config = miniature.config(recipe, evaluation=evaluation)
    miniature.train(config)
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    evaluate.score_run(config, dataset, splits.read(config.run.split, config.run.seed), CPU)
    return config


def predicted(config: RunConfig, images: dict[str, Path], folder: Path, outputs: Outputs = Outputs()) -> None:  # noqa: B008
    predict.check(images, folder, outputs, config.dataset.classes, overwrite=False)
    network = trained.network(config, trained.state(config), CPU)
    predict.predict(network, config, images, folder, outputs, CPU)


@pytest.mark.parametrize("evaluation", [OWN_SIZE, WINDOWS], ids=["own size", "windows"])
def test_images_of_the_evaluation_list_give_evaluation_s_predictions(
    mini_project: Path, evaluation: Evaluation
) -> None:
    config = trained_run("supervised", evaluation)
    own = config.run.artefacts / "predictions"
    images = predict.find_images(["data/mini/JPEGImages"])  # the training images too
    predicted(config, images, Path("out"))
    evaluated = sorted(path.name for path in own.iterdir())
    assert len(evaluated) == 2
    assert len(images) == 10
    for name in evaluated:
        assert (own / name).read_bytes() == (Path("out") / name).read_bytes()


def test_a_recalibrated_run_predicts_with_the_statistics_that_were_scored(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(Path("params.yaml"), "supervised: {}", "supervised: {recalibrated: {evaluation: {recalibrate: 3}}}")
    run = replace(miniature.run("supervised"), recipe="supervised-recalibrated")
    config = parameters.load().run(run)
    miniature.train(config)
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    evaluate.score_run(config, dataset, splits.read(run.split, run.seed), CPU)

    def script(out: str) -> dict[str, bytes]:
        """Predict the evaluation list as a person does, and return the masks."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        images = [str(dataset.image_path(each)) for each in dataset.ids("val")]
        arguments = [run.recipe, run.split, str(run.seed), *images, "--out", out]
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        runpy.run_path(str(miniature.PIPELINE / "predict.py"), run_name="__main__")
        return {path.name: path.read_bytes() for path in Path(out).iterdir()}

    scored = {path.name: path.read_bytes() for path in (run.artefacts / "predictions").iterdir()}
    assert len(scored) == 2
    assert script("out") == scored
    monkeypatch.setattr(trained, "recalibrate", lambda *arguments: None)
    assert script("as_trained") != scored  # the statistics matter to these images


def test_every_output_at_the_image_s_own_size(mini_project: Path) -> None:
    config = trained_run("supervised")
    images = {
        "deep/one": photograph(Path("mine/deep/one.png"), 37, 61),
        "two": photograph(Path("mine/two.jpg"), 50, 20),  # a PNG by its content
    }
    assert predict.find_images(["mine"]) == images
    predicted(config, images, Path("out"), Outputs(overlay=True, probabilities=True))
    for name, (height, width) in {"deep/one": (37, 61), "two": (50, 20)}.items():
        mask = Image.open(f"out/{name}.png")
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == list(voc_palette()[:9])
        labels = np.array(mask)
        assert labels.shape == (height, width)
        probabilities = np.load(f"out/{name}.npy")
        assert probabilities.shape == (3, height, width)
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
        chosen = np.take_along_axis(probabilities, labels[None].astype(np.int64), 0)[0]
        assert (chosen == probabilities.max(0)).all()
        assert Image.open(f"out/{name}.overlay.jpg").size == (width, height)
    assert Image.open("out/legend.png").size[1] % 3 == 0
    assert len(list(Path("out").rglob("*.*"))) == 7


def test_an_overlay_shows_the_image_and_the_class_s_colour() -> None:
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    labels = np.array([[0, 1, 1], [0, 0, 0]], dtype=np.uint8)
    drawn = np.array(predict.overlay(image, labels))
    assert drawn[0, 1].tolist() == [(100 + 128) // 2, 50, 50]  # VOC's second colour is (128, 0, 0)
    assert drawn[1, 1].tolist() == [50, 50, 50]


# --- large images -----------------------------------------------------------------------------------------


def whole_and_tiles(
    network: SegmentationNetwork, image: Tensor, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, int]:
    """Return an image's probabilities predicted as a whole and in tiles, and how many tiles there are."""
    with torch.no_grad():
        ((_, whole),) = predict.pieces_of(network, image, evaluation, "one.png")
        monkeypatch.setattr(predict, "LARGEST", 10)
        joined, tiles = torch.full_like(whole, torch.nan), 0
        for place, probabilities in predict.pieces_of(network, image, evaluation, "one.png"):
            assert joined[:, *place].isnan().all()
            joined[:, *place], tiles = probabilities, tiles + 1
    return whole, joined, tiles


@pytest.mark.parametrize(
    "evaluation", [OWN_SIZE, replace(OWN_SIZE, long_side=48)], ids=["own size", "half size"]
)
def test_tiles_give_what_the_whole_image_gives(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], evaluation: Evaluation
) -> None:
    torch.manual_seed(0)
    network = tiny_network(3).eval()  # sees less than the margin
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    monkeypatch.setattr(predict, "TILE", 32)
    monkeypatch.setattr(predict, "MARGIN", 32)
    whole, joined, tiles = whole_and_tiles(network, image, evaluation, monkeypatch)
    assert tiles == 2 * 3
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-5)
    assert capfd.readouterr().err.count("one.png: 96x64") == 1


def test_an_image_that_does_not_fit_into_the_gpu_is_predicted_in_tiles(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    network = tiny_network(3).eval()
    seen: list[tuple[int, ...]] = []

    def forty_pixels_fit(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(tuple(inputs[0].shape[2:]))
        if max(seen[-1]) > 40:
            raise torch.OutOfMemoryError

    network.backbone.register_forward_pre_hook(forty_pixels_fit)
    monkeypatch.setattr(predict, "TILE", 32)
    monkeypatch.setattr(predict, "MARGIN", 4)
    image = torch.zeros(3, 60, 30, dtype=torch.uint8)
    with torch.no_grad():
        places = [place for place, _ in predict.pieces_of(network, image, OWN_SIZE, "one.png")]
    assert seen == [(60, 30), (36, 30), (32, 30)]
    assert places == [(slice(0, 32), slice(0, 30)), (slice(32, 60), slice(0, 30))]
    assert "one.png" in capfd.readouterr().err
    monkeypatch.setattr(predict, "TILE", 64)
    with torch.no_grad(), pytest.raises(UserError, match=r"one\.png"):
        list(predict.pieces_of(network, image, OWN_SIZE, "one.png"))


# --- what is given ------------------------------------------------------------------------------------------


def test_files_folders_and_patterns_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.PNG", "notes.txt", ".hidden.png", "deep/er/c.jpeg", "odd[1].png"):
        photograph(Path("mine", name), 4, 4)
    find = predict.find_images
    assert list(find(["mine"])) == ["a", "b", "deep/er/c", "odd[1]"]
    assert find(["mine/a.jpg", "mine/odd[1].png"]).keys() == {"a", "odd[1]"}
    assert find(["mine/*.jpg"]) == {"a": Path("mine/a.jpg")}
    assert list(find([f"{tmp_path}/mine/**/*.jp*g"])) == ["a", "c"]
    assert list(find(["mine/d*"])) == ["er/c"]
    assert find(["mine/a.jpg", "mine", f"{tmp_path}/mine/a.jpg"]).keys() == find(["mine"]).keys()


@pytest.mark.parametrize("given", ["none.png", "mine/*.gif", "mine/**x", "empty"])
def test_what_names_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    photograph(Path("mine/a.png"), 4, 4)
    with pytest.raises(UserError) as error:
        predict.find_images(["mine/a.png", given])
    assert str(error.value).startswith(f"{given}: ")


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    images = [photograph(tmp_path / name, 4, 4) for name in ("one/a.png", "two/a.jpg")]
    with pytest.raises(UserError, match=r"two/a\.jpg"):
        predict.find_images([str(path) for path in images])
    photograph(tmp_path / "one/a.jpg", 4, 4)
    with pytest.raises(UserError, match=r"one/a\.png: .*one/a\.jpg"):
        predict.find_images([str(tmp_path / "one")])


def test_what_exists_is_not_replaced_unless_told(tmp_path: Path) -> None:
    images = {"a": photograph(tmp_path / "a.png", 4, 4), "b": photograph(tmp_path / "b.png", 4, 4)}
    out = tmp_path / "out"
    predict.check(images, out, Outputs(), CLASSES, overwrite=False)
    photograph(out / "b.png", 4, 4)
    with pytest.raises(UserError, match=r"out/b\.png"):
        predict.check(images, out, Outputs(), CLASSES, overwrite=False)
    predict.check(images, out, Outputs(), CLASSES, overwrite=True)
    (out / "b.png").replace(out / "a.overlay.jpg")
    predict.check(images, out, Outputs(), CLASSES, overwrite=False)
    with pytest.raises(UserError, match=r"out/a\.overlay\.jpg"):
        predict.check(images, out, Outputs(overlay=True), CLASSES, overwrite=False)
    (out / "a.overlay.jpg").unlink()
    photograph(out / "legend.png", 4, 4)
    with pytest.raises(UserError, match=r"out/legend\.png"):
        predict.check(images, out, Outputs(overlay=True), CLASSES, overwrite=False)
    predict.legend(CLASSES).save(out / "legend.png")  # of another call
    predict.check(images, out, Outputs(overlay=True), CLASSES, overwrite=False)
    with pytest.raises(UserError, match=r"legend\.jpg: .*rename"):
        predict.check(
            {"legend": tmp_path / "legend.jpg"}, out, Outputs(overlay=True), CLASSES, overwrite=True
        )
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"a\.png: .* replace this image"):
            predict.check(images, tmp_path, Outputs(), CLASSES, overwrite=overwrite)
    with pytest.raises(UserError, match="not a folder"):
        predict.check(images, images["a"], Outputs(), CLASSES, overwrite=True)


def test_a_broken_image_is_named_before_any_work(tmp_path: Path) -> None:
    whole = photograph(tmp_path / "whole.png", 40, 40)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(UserError) as error:
        predict.check(
            {"whole": whole, "broken": broken}, tmp_path / "out", Outputs(), CLASSES, overwrite=False
        )
    assert str(broken) in str(error.value)
    assert not (tmp_path / "out").exists()


# --- weights ------------------------------------------------------------------------------------------------


def test_the_weights_of_a_run_or_of_a_file(mini_project: Path) -> None:
    config = trained_run("cmb")
    path = config.run.artefacts / "model.pt"
    model = torch.load(path, weights_only=True)
    student, teacher = trained.state(config), trained.state(config, name="teacher")
    key = "classifier.1.weight"
    assert torch.equal(student[key], model["last"]["student"][key])
    assert torch.equal(teacher[key], model["last"]["teacher"][key])
    assert not torch.equal(student[key], teacher[key])
    with pytest.raises(UserError, match="student, teacher"):
        trained.state(config, name="nobody")

    other = replace(config, protocol=replace(config.protocol, steps=7))
    with pytest.raises(UserError, match="another configuration"):
        trained.state(other)
    assert torch.equal(trained.state(other, path)[key], student[key])

    larger = replace(config, dataset=replace(config.dataset, classes=("a", "b", "c", "d")))
    with pytest.raises(UserError, match="classes"):
        trained.network(larger, trained.state(larger, path), CPU)
    for content in ({"config_sha256": "1"}, [1, 2]):
        torch.save(content, "other.pt")
        with pytest.raises(UserError, match=r"other\.pt"):
            trained.state(config, Path("other.pt"))
    Path("other.pt").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"other\.pt: .*give another file"):
        trained.state(config, Path("other.pt"))
    with pytest.raises(UserError, match=r"none\.pt"):
        trained.state(config, Path("none.pt"))
