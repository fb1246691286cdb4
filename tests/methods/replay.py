"""Run recordings of the authors' code through this project's methods, and measure the differences.

tests/methods/recordings/README.md says what the recordings hold.
"""

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from semiseg.base import parameters
from semiseg.base.parameters import Optimiser, RunConfig
from semiseg.base.paths import Run
from semiseg.base.tree import from_tree
from semiseg.data.augment import Pixels
from semiseg.methods import cmb, dcc
from semiseg.methods.contract import IGNORE, Labelled, Task
from semiseg.models.network import Backbone, Maps, SegmentationNetwork
from semiseg.training.step import new_optimiser, poly, take_step
from tests.project import ROOT

Recording = Mapping[str, NDArray[Any]]
CMB_FILE, DCC_FILE = "cmb_voc_12_steps.npz", "dcc_bank_{}.npz"
DCC_INPUTS = ("images", "labels", "pair", "flip", "ul1", "br1", "ul2", "br2")


@dataclass
class Differences:
    """The largest difference of each quantity over all steps."""

    relative: dict[str, float] = field(default_factory=dict)  # norm of the difference over the recorded norm
    counts: dict[str, int] = field(default_factory=dict)  # numbers that are not equal

    def measure(self, what: str, ours: ArrayLike, recorded: ArrayLike) -> None:
        """Compare two arrays of real numbers; nothing is smaller than 1e-3."""
        theirs = np.asarray(recorded, np.float64)
        ours = np.asarray(ours, np.float64).reshape(theirs.shape)
        difference = float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-3))
        self.relative[what] = float(np.maximum(self.relative.get(what, 0.0), difference))  # NaN stays

    def measure_layers(
        self, what: str, ours: Mapping[str, Tensor], recorded: Mapping[str, NDArray[Any]]
    ) -> None:
        """Compare tensors by layer, "layer.weight" with "layer.bias".

        A bias before batch norm has no gradient, and alone it would be nothing but the rounding of float32.
        """
        for layer in {name.rpartition(".")[0] for name in ours}:
            names = [name for name in ours if name.rpartition(".")[0] == layer]
            values = np.concatenate([ours[name].detach().cpu().numpy().ravel() for name in names])
            self.measure(what, values, np.concatenate([recorded[name].ravel() for name in names]))

    def count(self, what: str, ours: ArrayLike, recorded: ArrayLike) -> None:
        """Count the entries of two arrays of integers that differ."""
        differ = int((np.asarray(ours) != np.asarray(recorded)).sum())
        self.counts[what] = self.counts.get(what, 0) + differ

    def beyond(self, limit: float) -> dict[str, float]:
        """Return the differences beyond ``limit``, and every count that is not zero."""
        far = {what: value for what, value in self.relative.items() if not value <= limit}
        return {**far, **{what: value for what, value in self.counts.items() if value}}


# --- the network ----------------------------------------------------------------------------------------


class Trunk(Backbone):
    """Two convolutions of stride 2 with batch norm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.output_stride = (16,), 4
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Maps:
        return (self.layers(images),)


class VocTrunk(Trunk):
    """Normalised as CMB's release does for VOC (utils/transformsgpu.py 24, 31)."""

    mean = tuple(float(np.float32(each)) / 255 for each in (122.6789143, 116.66876762, 104.00698793))
    std = (1.0, 1.0, 1.0)


class Decoder(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(16, features, 3, 1, 1), nn.BatchNorm2d(features), nn.ReLU())

    def forward(self, maps: Maps) -> Tensor:
        features: Tensor = self.layers(maps[-1])
        return features


def network(backbone: Backbone, classes: int, features: int) -> SegmentationNetwork:
    """Return the network of the recordings."""
    return SegmentationNetwork(
        backbone,
        Decoder(features),
        nn.Conv2d(features, classes, 1),
        num_classes=classes,
        feature_channels=features,
        feature_stride=4,
        align_corners=True,
    )


# --- what both replays share ----------------------------------------------------------------------------


def load(folder: Path, name: str) -> tuple[Recording, dict[str, Any]]:
    """Return the arrays of a recording and its settings."""
    arrays = dict(np.load(folder / name))
    return arrays, ast.literal_eval(str(arrays["config"]))


def run_config(method: str, settings: Mapping[str, Any], backbone_factor: float) -> RunConfig:
    """Return the configuration of a method's official recipe with a recording's steps and optimiser."""
    config = parameters.load(ROOT / "params.yaml").run(Run(f"{method}-official", "demo-1_20", 0))
    optimiser = Optimiser(
        name="sgd",
        learning_rate=settings["lr"],
        backbone_factor=backbone_factor,
        head_factor=1.0,
        layer_decay=1.0,
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        power=0.9,
        clip_norm=None,
    )
    protocol = dataclasses.replace(config.protocol, steps=settings["steps"], optimiser=optimiser)
    return dataclasses.replace(config, protocol=protocol)


def copied(recorded: NDArray[Any], like: Tensor) -> None:
    """Write recorded values into a tensor."""
    like.copy_(torch.from_numpy(recorded).view_as(like))


def norms(named: Mapping[str, Tensor | None]) -> list[float]:
    """Return the norm of each tensor; zero for None."""
    return [0.0 if each is None else float(each.detach().norm()) for each in named.values()]


# --- CMB ------------------------------------------------------------------------------------------------


class RecordedCmb(cmb.Method):
    """CMB that sees the recorded views instead of drawing its own, and keeps the parts of each step."""

    recording: Recording
    anchors: list[Pixels]
    contrasts: list[float]
    views: Iterator[int]

    def begin(self, step: int) -> None:
        """Prepare for the views of step ``step``: labelled, first strong, second strong."""
        of_step = self.recording["view_step"] == step
        self.views = iter(np.flatnonzero(of_step)[np.argsort(self.recording["view_index"][of_step])].tolist())
        self.anchors, self.contrasts = [], []

    def weak_view(self, labelled: Labelled) -> Pixels:
        return self.recorded(Pixels(*labelled, (labelled.masks != IGNORE).float()))

    def strong_view(self, anchor: Pixels, step: int) -> Pixels:
        self.anchors.append(anchor)
        return self.recorded(anchor)

    def contrast(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, spread = super().contrast(features, labels)
        self.contrasts.append(float(loss.detach()))
        return loss, spread

    def recorded(self, pixels: Pixels) -> Pixels:
        """Mix, flip, dim and pad as the released code's stand-in did."""
        r, view = self.recording, next(self.views)
        if f"view_mix/{view}" in r:
            bits = np.unpackbits(r[f"view_mix/{view}"])[: pixels.labels.numel()].astype(bool)
            mask = torch.from_numpy(bits).to(pixels.labels.device).view_as(pixels.labels).roll(-1, 0)
            pairs = [(each, mask if each.dim() == 3 else mask[:, None]) for each in pixels]
            pixels = Pixels(*(torch.where(pasted, each.roll(-1, 0), each) for each, pasted in pairs))
        if r["view_flip"][view]:
            pixels = Pixels(*(each.flip(-1) for each in pixels))
        images, labels, weights = (each.clone() for each in pixels)
        rows = int(r["view_padded_rows"][view])
        images *= float(r["view_gain"][view])
        images[:, :, :rows], labels[:, :rows], weights[:, :rows] = 0, IGNORE, 0
        return Pixels(images, labels, weights)


def cmb_parameters(learner: cmb.Method, teacher: bool) -> dict[str, tuple[nn.Parameter, int | None]]:
    """Return the parameters by their released names, each with the class whose part of it is meant."""
    found: dict[str, tuple[nn.Parameter, int | None]] = {}
    trained = learner.teacher if teacher else learner.student
    for name, parameter in trained.named_parameters():
        found[name.replace(".layers", "")] = parameter, None
    heads = {"projection_head": learner.teacher_projection if teacher else learner.projection}
    if not teacher:
        heads["prediction_head"] = learner.prediction
    for name, head in heads.items():
        for place, part in ((0, head.hidden), (1, head.norm), (3, head.out)):
            for kind in ("weight", "bias"):
                found[f"{name}.{place}.{kind}"] = getattr(part, kind), None
    attention = learner.teacher_attention if teacher else learner.prediction_attention
    for each in range(learner.num_classes) if attention is not None else ():
        for place, part in ((0, "hidden"), (1, "norm"), (3, "out")):
            for kind in ("weight", "bias"):
                found[f"contrastive_class_selector_{each}.{place}.{kind}"] = (
                    getattr(attention, f"{part}_{kind}"),
                    each,
                )
    return found


def replay_cmb(folder: Path, device: torch.device, **changes: Any) -> Differences:
    """Take the recorded steps of CMB with the official recipe's options and ``changes`` of them."""
    r, settings = load(folder, CMB_FILE)
    voc = settings["dataset"] == "pascal_voc"
    options = {
        **run_config("cmb", settings, 1.0).options,
        "dim": settings["dim"],
        "ramp_up_steps": settings["ramp"],
        "memory_lead_steps": settings["lead"],
        "start_late": not settings.get("start", ">").startswith(">="),
        "memory_size": settings["memory_per_class"],
        "memory_confidence": 0.95,
        "teacher_decay": 0.995,
        "images_hold": "few" if voc else "all",
        **changes,
    }
    config = run_config("cmb", settings, 1.0)
    learner = RecordedCmb(
        lambda: network(VocTrunk(), settings["classes"], settings["features"]),
        from_tree(cmb.Config, options, "options"),
        Task(settings["steps"], settings["labelled"], background=0 if voc else None, unlabelled_images=30),
    )
    learner.recording = r
    with torch.no_grad():
        for name, (parameter, part) in cmb_parameters(learner, teacher=False).items():
            copied(r[f"initial/{name}"], parameter if part is None else parameter[part])
    learner.teacher.load_state_dict(learner.student.state_dict())
    learner.teacher_projection.load_state_dict(learner.projection.state_dict())
    if learner.teacher_attention is not None and learner.prediction_attention is not None:
        learner.teacher_attention.load_state_dict(learner.prediction_attention.state_dict())
    learner.to(device).train()

    found = Differences()
    optimiser = new_optimiser(learner, config.protocol.optimiser)
    schedule = poly(optimiser, config.protocol, 0)
    recorded_names = r["gradient_names"].tolist()
    for step in range(settings["steps"]):
        learner.begin(step)
        rates = [group["lr"] for group in optimiser.param_groups]
        labelled = Labelled(
            torch.from_numpy(r["images"][step]).to(device).float() / 255,
            torch.from_numpy(r["labels"][step]).to(device).long(),
        )
        images = torch.from_numpy(r["unlabelled"][step]).to(device).float() / 255
        unlabelled = {"image": images, "mask": torch.zeros_like(images[:, 0], dtype=torch.uint8)}
        logs = take_step(config, learner, learner, optimiser, labelled, unlabelled, step)
        schedule.step()

        found.measure("learning rate", rates, [r["lr"][step]] * len(rates))
        for what in ("supervised", "pseudo", "entropy"):
            found.measure(what, float(logs[what]), r[what][step])
        found.measure(
            "contrast of labelled and of unlabelled", learner.contrasts or [0, 0], r["contrast"][step]
        )
        anchor = learner.anchors[0]
        found.count("the teacher's labels", anchor.labels.cpu(), r["pseudo_label"][step])
        found.measure(
            "the teacher's mean confidence", float(anchor.weights.mean()), r["confidence_mean"][step]
        )
        trained, averaged = (cmb_parameters(learner, teacher) for teacher in (False, True))
        gradients = {
            name: each.grad if part is None or each.grad is None else each.grad[part]
            for name, (each, part) in trained.items()
        }
        of_trained = [recorded_names.index(name) for name in trained]
        found.measure("gradient norms", norms(gradients), r["gradient_norms"][step][of_trained])
        values = {name: each if part is None else each[part] for name, (each, part) in averaged.items()}
        of_averaged = [recorded_names.index(name) for name in averaged]
        found.measure("the teacher's norms", norms(values), r["ema_norms"][step][of_averaged])
        found.count("features in the memory", learner.memory.count.cpu(), r["memory_count"][step])
        filled = (learner.memory.labels() != IGNORE)[:, :, None]
        sums = (learner.memory.features * filled).sum(1)
        found.measure("sum of each class's memory", sums.cpu(), r["memory_sum"][step])
    for kind, teacher in (("final", False), ("final_teacher", True)):
        named = cmb_parameters(learner, teacher)
        values = {
            f"{kind}/{name}": each if part is None else each[part] for name, (each, part) in named.items()
        }
        found.measure_layers(f"{kind} weights", values, r)
    return found


# --- DCC ------------------------------------------------------------------------------------------------


class RecordedDcc(dcc.Method):
    """DCC without colours, which keeps the parts of each step."""

    contrasts: list[float]
    negatives: int  # of the last step

    def augmented(self, images: Tensor) -> Tensor:
        return images

    def contrast(
        self,
        anchor: dcc.Seen,
        other: dcc.Seen,
        negatives: Tensor,
        negative_labels: Tensor,
        negative_valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        loss, selected = super().contrast(anchor, other, negatives, negative_labels, negative_valid)
        self.contrasts.append(float(loss.detach()))
        self.negatives = len(negatives) if negative_valid is None else int(negative_valid.sum())
        return loss, selected


def dcc_name(released: str) -> str:
    """Return our name of a released parameter or buffer."""
    for theirs, ours in (
        ("encoder.backbone.", "student.backbone.layers."),
        ("encoder.decoder.", "student.decoder.layers."),
        ("classifier.", "student.classifier."),
        ("project.", "projector."),
    ):
        if released.startswith(theirs):
            return ours + released.removeprefix(theirs)
    raise KeyError(released)


def replay_dcc(folder: Path, step_save: int, device: torch.device, **changes: Any) -> Differences:
    """Take the recorded steps of DCC with a bank of ``step_save`` steps, and ``changes`` of the options."""
    (r, settings), (inputs, _) = (load(folder, DCC_FILE.format(each)) for each in (step_save, 1))
    config = run_config("dcc", settings, settings["backbone_factor"])
    options = {
        **config.options,
        "bank_steps": settings["step_save"],
        "dim": settings["dim"],
        "start_share": settings["epoch_start_unsup"] / settings["epochs"],
        "temperature": settings["temp"],
        "threshold": settings["pos_thresh_value"],
        "weight": settings["weight_unsup"],
        **changes,
    }
    learner = RecordedDcc(
        lambda: network(Trunk(), settings["classes"], settings["features"]),
        from_tree(dcc.Config, options, "options"),
        Task(settings["steps"], settings["batch"], background=None),
    )
    state = learner.state_dict()
    for name in inputs:
        if name.startswith("initial/"):
            copied(inputs[name], state[dcc_name(name.removeprefix("initial/"))])
    learner.to(device).train()

    found = Differences()
    optimiser = new_optimiser(learner, config.protocol.optimiser)
    schedule = poly(optimiser, config.protocol, 0)
    for step in range(settings["steps"]):
        learner.contrasts, learner.negatives = [], 0
        rates = {
            name: group["lr"]
            for name, group in zip(("backbone", "rest"), optimiser.param_groups, strict=True)
        }
        at = {name: torch.from_numpy(inputs[name][step]).to(device) for name in DCC_INPUTS}
        pair = at["pair"].float() / 255
        unlabelled = {
            "image1": pair[:, 0],
            "image2": pair[:, 1],
            "flip1": at["flip"][:, 0],
            "flip2": at["flip"][:, 1],
            "box1": torch.cat((at["ul1"], at["br1"]), 1),
            "box2": torch.cat((at["ul2"], at["br2"]), 1),
        }
        labelled = Labelled(at["images"].float() / 255, at["labels"].long())
        logs = take_step(config, learner, learner, optimiser, labelled, unlabelled, step)
        schedule.step()

        found.measure("learning rates", [rates["rest"], rates["backbone"]], r["lr"][step])
        found.measure("supervised", float(logs["supervised"]), r["supervised"][step])
        for what, loss in zip(("loss1", "loss2"), learner.contrasts or [0, 0], strict=True):
            found.measure(what, loss, r[what][step])
        found.measure("total", float(logs["loss"]), r["total"][step])
        parameters_by_name = dict(learner.named_parameters())
        gradients = {name: parameters_by_name[dcc_name(name)].grad for name in r["gradient_names"]}
        found.measure("gradient norms", norms(gradients), r["gradient_norms"][step])
        found.count("negatives", learner.negatives, r["bank_rows"][step])
    state = learner.state_dict()
    final = {name: state[dcc_name(name.removeprefix("final/"))] for name in r if name.startswith("final/")}
    found.measure_layers("final weights and statistics", final, r)
    return found
