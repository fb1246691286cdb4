"""DCC: directional context-aware consistency.

Lai, Tian, Jiang, Liu, Zhao, Wang, Jia: Semi-supervised Semantic Segmentation with Directional Context-aware
Consistency, CVPR 2021. "Released code" is github.com/dvlab-research/Context-Aware-Consistency at a7cd9b4a;
docs/deviations.md lists its differences from the paper and the option for each of them.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from semiseg.base import checks
from semiseg.base.distributed import gathered, global_mean
from semiseg.base.errors import UserError
from semiseg.base.parameters import Geometry, Protocol
from semiseg.data.augment import colour_jitter, gaussian_blur, greyscale, kernel_blur
from semiseg.data.views import context_views, counterparts, unflipped
from semiseg.losses import cross_entropy, directional_contrastive_loss
from semiseg.methods import contract
from semiseg.methods.contract import IGNORE, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models.feature_bank import FeatureBank
from semiseg.models.network import SegmentationNetwork

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """DCC's hyper-parameters. Defaults follow the paper and, where it is silent, the released code."""

    # total loss: cross-entropy + weight x what the unlabelled images teach, from a share of the run on
    objective: str = "contrast"  # or l2 (on the positives), or self_training (on pseudo-labels)
    weight: float = 0.1
    start_share: float = 5 / 80  # of the run's steps; released code: 5 of 80 epochs
    # two views of an unlabelled image
    unlabelled_scale: tuple[float, float] = (0.8, 2.0)  # long side over base_size
    context: bool = True  # two crops; else the same crop twice
    iou: tuple[float, float] = (0.1, 1.0)  # of the two crops
    stride: int = 8  # pixels; the crops' offset is a multiple of it
    flip_probability: float = 0.5  # of each view
    # colours of a view
    blur_sigma: float = 1.1  # standard deviation in pixels
    # taps of a kernel to blur with instead, an odd number; released code: OpenCV's 1, 4, 6, 4, 1
    blur_taps: tuple[float, ...] = ()
    blur_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    # features
    pooling: bool = True  # average-pooled by two
    projector: bool = True  # else the decoder's own features, normalised
    dim: int = 128
    # directional contrastive loss
    temperature: float = 0.1  # τ
    threshold: float = 0.75  # γ
    directional: bool = True  # M_d
    positive_filter: bool = True  # M_pf
    negative_sampling: bool = True  # M_n
    # what the mean runs over: the overlap or the selected positions; released code: selected
    normalize: str = "overlap"
    bank_steps: int = 0  # earlier steps whose features are negatives too; released code: 1 or 2 on VOC

    def __post_init__(self) -> None:
        checks.one_of(self, "objective", "contrast", "l2", "self_training")
        checks.one_of(self, "normalize", "overlap", "selected")
        checks.at_least(self, 0, "weight", "bank_steps", "blur_taps", "jitter")
        checks.at_least(self, 1, "stride", "dim")
        checks.positive(self, "temperature", "unlabelled_scale", "blur_sigma")
        checks.within(self, 0, 1, "start_share", "threshold", "iou", "flip_probability")
        checks.within(self, 0, 1, "blur_probability", "jitter_probability", "grey_probability")
        checks.ascending(self, "unlabelled_scale", "iou")
        if self.blur_taps and (len(self.blur_taps) % 2 == 0 or sum(self.blur_taps) <= 0):
            raise ValueError(
                f"blur_taps: {list(self.blur_taps)} are no kernel; give an odd number of weights"
            )
        if self.jitter[3] > 0.5:
            raise ValueError(f"jitter: hue {self.jitter[3]} is more than half a turn")

    def check(self, protocol: Protocol) -> None:
        """Refuse a start that no step of the run reaches."""
        if self.start_share * protocol.steps > protocol.steps - 1:
            raise ValueError(
                f"start_share: {self.start_share} leaves no step for unlabelled images in a run of "
                f"{protocol.steps}; lower it"
            )


def views(config: Config, geometry: Geometry) -> View:
    """Return the transform to two overlapping crops; see semiseg.data.views.context_views.

    Raises UserError for a crop that is not a multiple of the stride: a flip would move its features off the
    other crop's.
    """
    if geometry.crop % config.stride:
        raise UserError(
            f"params.yaml: geometry: crop {geometry.crop} is not a multiple of DCC's stride {config.stride}"
        )
    return partial(
        context_views,
        geometry=geometry,
        scale=config.unlabelled_scale,
        stride=config.stride,
        iou_range=config.iou if config.context else (1.0, 1.0),
        flip_probability=config.flip_probability,
    )


class Seen(NamedTuple):
    """The student's output for a view at every position, B h w rows, with the flip undone."""

    projected: Tensor  # (B h w, D), L2-normalised
    confidence: Tensor  # (B h w,), the largest probability
    labels: Tensor  # (B h w,) int64, its class
    size: tuple[int, int]  # h, w
    box: Tensor  # (B, 4), the overlap in pixels


class Method(contract.Method):
    """A student, and the projector into the space in which its features are compared."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        channels = self.student.feature_channels
        self.config = config
        self.start = config.start_share * task.total_steps
        cell = self.student.feature_stride * (2 if config.pooling else 1)
        if cell % 1 or config.stride % cell:
            raise UserError(
                f"params.yaml: dcc: features are {cell} pixels apart, and stride {config.stride} must be a "
                "multiple of a whole number of them; change stride, pooling or the head"
            )
        self.cell = int(cell)
        dim = config.dim if config.projector else channels
        self.projector: nn.Module = nn.Identity()
        if config.projector and config.objective != "self_training":
            self.projector = _projector(channels, dim)
        self.bank = FeatureBank(config.bank_steps, dim) if config.bank_steps else None

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return cross-entropy + weight x consistency (section 3.4) and its parts.

        ``unlabelled`` holds what ``views`` returns. Logs: supervised; consistency, before its weight; and
        selected, the share of the overlap's positions that the masks keep.
        """
        assert unlabelled is not None
        supervised = cross_entropy(self.student(labelled.images), labelled.masks)
        consistency = selected = torch.zeros_like(supervised)
        if step >= self.start:
            self_training = self.config.objective == "self_training"
            objective = self.self_training if self_training else self.agreement
            consistency, selected = objective(unlabelled)
        loss = supervised + self.config.weight * consistency
        logs = {"supervised": supervised, "consistency": consistency, "selected": selected}
        return loss, {name: log.detach() for name, log in logs.items()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student}

    # --- consistency of the overlap -------------------------------------------------------------------

    def agreement(self, unlabelled: Unlabelled) -> tuple[Tensor, Tensor]:
        """Return the loss over the overlap of two views, in both directions, and the selected share."""
        one, two = self._seen(unlabelled, 1), self._seen(unlabelled, 2)
        if self.config.objective == "l2":
            loss = self._distance(one, two) + self._distance(two, one)
            return loss, torch.ones_like(loss)
        negatives = self._negatives(one, two)
        loss, selected = self.contrast(one, two, *negatives)
        other_loss, other_selected = self.contrast(two, one, *negatives)
        return loss + other_loss, (selected + other_selected) / 2

    def contrast(
        self,
        anchor: Seen,
        other: Seen,
        negatives: Tensor,
        negative_labels: Tensor,
        negative_valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the directional contrastive loss of a view's overlap with the other, and the selected share.

        negatives: (M, D); negative_labels: (M,); negative_valid: (M,) bool, None for all.
        """
        config = self.config
        index, overlap = counterparts(anchor.box, other.box, *anchor.size, self.cell)
        confidence = other.confidence[index]
        loss = directional_contrastive_loss(
            anchor.projected,
            other.projected.detach()[index],
            anchor.confidence,
            confidence,
            anchor.labels,
            negatives,
            negative_labels,
            temperature=config.temperature,
            threshold=config.threshold,
            directional=config.directional,
            positive_filter=config.positive_filter,
            negative_sampling=config.negative_sampling,
            normalize=config.normalize,
            valid=overlap,
            negative_valid=negative_valid,
        )
        return loss, self._selected(anchor.confidence, confidence, overlap)

    @torch.no_grad()
    def _selected(self, confidence: Tensor, other: Tensor, overlap: Tensor) -> Tensor:
        """Return the share of the overlap's positions that both masks, M_d and M_pf, keep: a scalar."""
        selected = overlap
        if self.config.directional:
            selected = selected & (confidence < other)
        if self.config.positive_filter:
            selected = selected & (other > self.config.threshold)
        return global_mean(selected.sum(), overlap.sum())

    def _distance(self, anchor: Seen, other: Seen) -> Tensor:
        """Return the squared distance of a view's overlap to the other, a mean over its positions."""
        index, overlap = counterparts(anchor.box, other.box, *anchor.size, self.cell)
        distances = (anchor.projected - other.projected.detach()[index]).square().sum(dim=1)
        return global_mean(torch.where(overlap, distances, 0).sum(), overlap.sum())

    @torch.no_grad()
    def _negatives(self, one: Seen, two: Seen) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the features of this step, from every process, and of the bank: rows, labels, valid."""
        features = gathered(torch.cat((one.projected, two.projected)))
        labels = gathered(torch.cat((one.labels, two.labels)))
        if self.bank is None:
            return features, labels, None
        banked, banked_labels, filled = self.bank.rows()
        self.bank.add(features, labels)
        valid = torch.cat((torch.ones_like(labels, dtype=torch.bool), filled))
        return torch.cat((features, banked)), torch.cat((labels, banked_labels)), valid

    # --- self-training --------------------------------------------------------------------------------

    def self_training(self, unlabelled: Unlabelled) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the first view with its own confident predictions, and their share."""
        logits = self.student(self.augmented(unlabelled["image1"])).float()
        confidence, labels = torch.softmax(logits.detach(), dim=1).max(dim=1)
        inside = unflipped(_inside(unlabelled["inside"], *labels.shape[1:]), unlabelled["flip1"])
        labels = torch.where(inside & (confidence > self.config.threshold), labels, IGNORE)
        selected = global_mean((labels != IGNORE).sum(), inside.sum())
        return cross_entropy(logits, labels), selected

    # --- features -------------------------------------------------------------------------------------

    def augmented(self, images: Tensor) -> Tensor:
        """Blur, jitter and grey images (B, 3, H, W) in [0, 1]."""
        config = self.config
        if config.blur_taps:
            images = kernel_blur(images, probability=config.blur_probability, taps=config.blur_taps)
        else:
            sigma = (config.blur_sigma, config.blur_sigma)
            images = gaussian_blur(images, probability=config.blur_probability, sigma=sigma)
        brightness, contrast, saturation, hue = config.jitter
        images = colour_jitter(
            images,
            probability=config.jitter_probability,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
        )
        return greyscale(images, probability=config.grey_probability)

    def _seen(self, unlabelled: Unlabelled, view: int) -> Seen:
        images, flip = unlabelled[f"image{view}"], unlabelled[f"flip{view}"]
        features = self.student.features(self.augmented(images))
        if self.config.pooling:
            features = avg_pool2d(features, 2)
        projected = normalize(self.projector(features).float(), dim=1)
        with torch.no_grad():
            probabilities = torch.softmax(self.student.classify(features).float(), dim=1)
            confidence, labels = unflipped(probabilities, flip).max(dim=1)
        return Seen(
            unflipped(projected, flip).permute(0, 2, 3, 1).flatten(0, 2),
            confidence.flatten(),
            labels.flatten(),
            (projected.shape[-2], projected.shape[-1]),
            unlabelled[f"box{view}"],
        )


def _projector(channels: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, dim, 1))


def _inside(inside: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are image, (B, height, width) bool, for their rows and columns (B, 2)."""
    rows, columns = inside.view(-1, 2, 1, 1).unbind(dim=1)
    y = torch.arange(height, device=inside.device).view(1, -1, 1)
    x = torch.arange(width, device=inside.device).view(1, 1, -1)
    return (y < rows) & (x < columns)
