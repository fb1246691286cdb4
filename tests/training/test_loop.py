"""The training loop: exact resume, all of a method's networks, and what stops a run."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from semiseg.base import locks, provenance
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256
from semiseg.base.parameters import Network, RunConfig
from semiseg.data import prepared, splits
from semiseg.data.streams import evaluation_images
from semiseg.evaluation import evaluate, record, trained
from semiseg.evaluation.score import Scoring
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint, loop
from semiseg.training import step as training_step
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.divergence import Diverged
from tests import miniature
from tests.miniature import CPU
from tests.tiny import tiny_network

RUN = miniature.run("supervised")


def same_tensors(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    return one == other


def history(config: RunConfig) -> pd.DataFrame:
    return pd.read_csv(config.run.artefacts / "history.csv").drop(columns="images_per_second")


def stopped_and_resumed(config: RunConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train until the checkpoint behind ``step`` is written, end there, and train on."""
    save = Checkpoint.save

    def save_and_die(state: Checkpoint, folder: Path) -> None:
        save(state, folder)
        if state.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            miniature.train(config)
    return miniature.train(config)


def written(name: str, **protocol: Any) -> RunConfig:
    """Return a run of a method that was written for the tests."""
    config = miniature.config(**protocol)
    return dataclasses.replace(config, run=miniature.run(name), method=name)


def tiny_with_dropout(num_classes: int) -> SegmentationNetwork:
    network = tiny_network(num_classes)
    network.classifier = nn.Sequential(nn.Dropout(0.1), network.classifier)
    return network


@pytest.fixture
def tiny(mini_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training and evaluation build tiny networks, which draw random numbers as larger ones do."""
    for module in (training_step, trained):
        monkeypatch.setattr(module, "build", lambda network, num_classes: tiny_with_dropout(num_classes))


def test_a_run_is_the_same_with_and_without_kept_images(
    tiny: None, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = miniature.train(miniature.config("cmb", steps=3))
    checkpoint.forget(miniature.run("cmb").checkpoints)
    assert "MiB" not in capfd.readouterr().err
    kept = miniature.train(miniature.config("cmb", steps=3, image_cache_mib=1))
    assert capfd.readouterr().err.count("1 MiB") == 1
    assert same_tensors(plain["last"], kept["last"])
    assert plain["config_sha256"] == kept["config_sha256"]


def test_a_run_is_written_through_links_to_another_disk(tiny: None, tmp_path: Path) -> None:
    for name in ("checkpoints", "runs"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        Path(name).symlink_to(tmp_path / "disk" / name)
    config = miniature.config(steps=3)
    with locks.held(config.run):
        assert same_tensors(miniature.train(config)["last"], miniature.train(config)["last"])
    checkpoint.forget(config.run.checkpoints)
    kept = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"model.pt", "history.csv"}
    assert not any("checkpoints" in path.parts and "locks" not in path.parts for path in kept)
    assert Path("checkpoints").is_symlink()
    assert Path("runs").is_symlink()


@pytest.mark.parametrize("recipe", ["cmb", "cps", "fixmatch", "mean_teacher", "u2pl"])
def test_judged_pseudo_labels_are_counted_and_change_nothing(tiny: None, recipe: str) -> None:
    plain = miniature.train(miniature.config(recipe))
    rows = history(plain_run := miniature.config(recipe))
    checkpoint.forget(plain_run.run.checkpoints)
    seen = miniature.train(miniature.config(recipe, judge_pseudo_labels=True))
    assert same_tensors(plain["last"], seen["last"])
    assert plain["config_sha256"] == seen["config_sha256"]
    counted = history(plain_run)
    pd.testing.assert_frame_equal(counted[list(rows)], rows)
    counts = [counted.filter(like=f"pixels_{kind}_") for kind in ("true", "labelled", "right")]
    true, labelled, right = (each.to_numpy() for each in counts)
    assert true.shape == (len(rows), 3)
    assert (true.sum(axis=1) > 0).all()
    assert ((right >= 0) & (right <= labelled) & (labelled <= true * (2 if recipe == "cps" else 1))).all()


def test_images_without_masks_are_not_judged(tiny: None) -> None:
    config = miniature.config("fixmatch", judge_pseudo_labels=True)
    dataset, split = prepared.open_dataset("mini", config.dataset), splits.read(config.run.split, 0)
    names = prepared.read_files(dataset.folder)
    bare = dataset.layout.mask(split.unlabelled[0])
    listed = dataset.folder / "files.txt"
    kept = [line for line in listed.read_text().splitlines(keepends=True) if bare not in line]
    assert len(kept) == len(names) - 1
    listed.write_text("".join(kept))
    dataset = dataclasses.replace(dataset, digest=file_sha256(listed))
    with pytest.raises(UserError, match=f"{split.unlabelled[0]}.*judge_pseudo_labels"):
        loop.train(config, dataset, split, CPU, Scoring.of(config, CPU))


def test_a_model_names_the_revision_that_the_sitting_of_its_last_step_began_with(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = iter(("first", "second"))
    monkeypatch.setattr(provenance, "revision", lambda: next(revisions))
    for _ in range(2):  # the second sitting takes no step
        assert miniature.train(miniature.config(steps=2))["revision"] == "first"
    assert not list(revisions)


@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(tiny: None, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = miniature.config(recipe)
    whole, rows = miniature.train(config), history(config)
    checkpoint.forget(config.run.checkpoints)
    resumed = stopped_and_resumed(config, 4, monkeypatch)
    for part in ("last", "best", "best_step", "last_step"):
        assert same_tensors(whole[part], resumed[part]), part
    pd.testing.assert_frame_equal(history(config), rows)
    checkpoint.forget(config.run.checkpoints)
    assert not config.run.checkpoints.exists()


TRANSFORMER = {
    "network": Network("dpt", "timm:vit_tiny_patch16_224", "none", 16, 8),
    "precision": "bf16",
}


def test_a_transformer_under_adamw_goes_on_bit_for_bit(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimiser = dataclasses.replace(miniature.config().protocol.optimiser, name="adamw", layer_decay=0.8)
    config = miniature.config("fixmatch", **TRANSFORMER, optimiser=optimiser)
    options = {"strong_views": 2, "complementary_dropout": True, "pseudo_labels": "teacher"}
    config = dataclasses.replace(config, options=options)
    whole, rows = miniature.train(config), history(config)
    checkpoint.forget(config.run.checkpoints)
    resumed = stopped_and_resumed(config, 4, monkeypatch)
    assert set(whole["last"]) == {"student", "teacher"}
    assert same_tensors(whole["last"], resumed["last"])
    pd.testing.assert_frame_equal(history(config), rows)


@pytest.mark.parametrize(("backbone", "package"), [("resnet18", None), ("efficientnet_lite0", "timm")])
def test_a_model_names_the_package_of_its_architecture(
    mini_project: Path, backbone: str, package: str | None
) -> None:
    network = Network("deeplabv3plus", backbone, "none", 16, 8)
    packages = miniature.train(miniature.config(steps=2, network=network))["packages"]
    assert {"torch", "torchvision", "numpy"} <= packages.keys()
    assert packages.get("timm") == (package and importlib.metadata.version(package))


# --- several networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "networks"), [("two_networks", ["left", "right"]), ("many_decoders", ["main"])]
)
def test_every_network_is_trained_validated_saved_restored_scored_and_recorded(
    tiny: None,
    written_methods: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    networks: list[str],
) -> None:
    config = written(name, log_every=1)
    whole, rows = miniature.train(config), history(config)
    assert list(whole["last"]) == list(whole["best"]) == networks
    for label in networks:
        assert rows[f"val_miou_{label}"].notna().tolist() == [False, False, True] * 2
        assert not same_tensors(whole["last"][label], whole["best"][label]) or whole["best_step"] == 6
    if len(networks) == 2:
        assert not same_tensors(whole["last"]["left"], whole["last"]["right"])

    checkpoint.forget(config.run.checkpoints)
    resumed = stopped_and_resumed(config, 4, monkeypatch)
    assert same_tensors(resumed["last"], whole["last"])
    assert same_tensors(resumed["best"], whole["best"])
    pd.testing.assert_frame_equal(history(config), rows)

    dataset = prepared.open_dataset("mini", config.dataset)
    split = splits.read(config.run.split, 0)
    result = evaluate.score_run(config, dataset, split, CPU)
    record.write(result, config.run.metrics)
    assert record.read(config.run.metrics) == result
    assert result.headline == networks[0]
    assert list(result.last.networks) == list(result.best.networks) == networks
    last = rows.iloc[-1]
    for label in networks:
        assert result.last.networks[label].miou == pytest.approx(last[f"val_miou_{label}"])
        network = tiny_with_dropout(3)
        network.load_state_dict(whole["last"][label])
        images = evaluation_images(dataset, dataset.ids("val"), 0)
        (matrix,) = Scoring.of(config, CPU).count({label: network}, images).values()
        figures = Scoring.of(config, CPU).figures(matrix)
        assert result.last.networks[label].miou == pytest.approx(figures["miou"])
    assert result.confusion is not None
    assert result.miou == result.last.networks[networks[0]].miou


def test_the_best_step_is_the_headlines(
    tiny: None, written_methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second network is best elsewhere, and is kept at the first one's best step all the same."""
    mious = {"left": iter((0.1, 0.5, 0.3)), "right": iter((0.9, 0.2, 0.8))}
    names = iter(("left", "right") * 3)
    monkeypatch.setattr(Scoring, "figures", lambda self, matrix: {"miou": next(mious[next(names)])})
    model = miniature.train(written("two_networks", validate_every=2, log_every=2))
    assert model["best_step"] == 4
    assert history(written("two_networks"))["val_miou_right"].tolist() == [0.9, 0.2, 0.8]


def test_the_first_step_moves_each_group_at_its_own_rate(tiny: None, written_methods: list[str]) -> None:
    """Two runs with other backbone factors differ after one step only in their backbones."""
    config = written("two_networks", steps=1)
    models = []
    for factor in (0.1, 0.2):
        optimiser = dataclasses.replace(
            config.protocol.optimiser, backbone_factor=factor, momentum=0.0, weight_decay=0.0, clip_norm=None
        )
        protocol = dataclasses.replace(config.protocol, optimiser=optimiser)
        models.append(miniature.train(dataclasses.replace(config, protocol=protocol))["last"])
        checkpoint.forget(config.run.checkpoints)
    for label in ("left", "right"):
        for key, value in models[0][label].items():
            if not key.startswith("backbone"):
                assert torch.equal(value, models[1][label][key]), key
        assert not torch.equal(
            models[0][label]["backbone.layers.0.weight"], models[1][label]["backbone.layers.0.weight"]
        )


# --- what stops a run ---------------------------------------------------------------------------------------


def test_another_configuration_data_or_list_is_refused_with_what_to_do(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = miniature.config()
    whole = stopped_and_resumed(config, 4, monkeypatch)
    dataset, split = prepared.open_dataset("mini", config.dataset), splits.read(config.run.split, 0)
    longer = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, steps=7))
    for what, arguments in {
        "configuration": (longer, dataset, split),
        "images": (config, dataclasses.replace(dataset, digest="0" * 64), split),
        "labelled": (config, dataset, dataclasses.replace(split, labelled_sha256="0" * 64)),
    }.items():
        with pytest.raises(UserError, match=f"^{RUN.checkpoints}/.*{what}.*remove {RUN.checkpoints}"):
            loop.train(*arguments, CPU, Scoring.of(arguments[0], CPU))
    assert same_tensors(miniature.train(config)["last"], whole["last"])


def test_a_diverging_run_leaves_no_model(tiny: None) -> None:
    optimiser = dataclasses.replace(miniature.config().protocol.optimiser, learning_rate=1e30)
    with pytest.raises(Diverged, match="'loss'"):
        miniature.train(miniature.config(optimiser=optimiser, validate_every=100))
    assert not (RUN.artefacts / "model.pt").exists()
