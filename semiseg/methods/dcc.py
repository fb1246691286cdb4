"""DCC: directional context-aware consistency.

Lai, Tian, Jiang, Liu, Zhao, Wang, Jia: Semi-supervised Semantic Segmentation with Directional Context-aware
Consistency, CVPR 2021. "Released code" is github.com/dvlab-research/Context-Aware-Consistency at a7cd9b4a;
docs/deviations.md lists its differences from the paper.
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
    """DCC's hyper-parameters.

    Defaults follow the paper and, where it is silent, the released code, whose lines are given;
    "configuration" is configs/voc_cac_deeplabv3+_resnet50_1over8_datalist0.json. "Released:" names a value
    that differs; the recipe ``dcc-official`` sets all of these, with the bank_steps of ResNet-50 on VOC.
    """

    # total loss: cross-entropy + weight x what the unlabelled images teach, from a share of the run on
    # contrast: of the overlap's features (models/model.py 196-273)
    # l2 (the paper's row I, which it only names): squared distance of the normalised features, a mean over
    # the overlap, in both directions, without masks
    # self_training (row ST, likewise): cross-entropy of the first view, flipped and coloured as in DCC, with
    # the student's own prediction in the same pass where its confidence is above γ; dcc-st has weight 1
    objective: str = "contrast"
    weight: float = 0.1  # (configuration 32)
    # Share of the steps before unlabelled images are seen: 5 of 80 epochs (models/model.py 104-105,
    # trainer.py 81; configuration 33, 89).
    start_share: float = 5 / 80
    # two views of an unlabelled image
    unlabelled_scale: tuple[float, float] = (0.8, 2.0)  # long side over base_size (dataloaders/voc.py 80)
    # Take two crops (dataloaders/voc.py 99-126), not one crop twice (row VI); flips and colours are each
    # view's.
    context: bool = True
    # Intersection over union of the crops: 50 draws, then the same crop twice (dataloaders/voc.py 102-126;
    # configuration 76).
    iou: tuple[float, float] = (0.1, 1.0)
    # Pixels; the crops' offset is a multiple of it, rounded down (dataloaders/voc.py 108-111; models/model.py
    # 153-158).
    stride: int = 8
    flip_probability: float = 0.5  # for each view (dataloaders/voc.py 166-176)
    # colours of a view (dataloaders/voc.py 20, 40-41)
    blur_sigma: float = 1.1  # standard deviation in pixels
    # Taps of a kernel to blur with instead, an odd number. Released: OpenCV's 1, 4, 6, 4, 1, of deviation 1.0
    # (dataloaders/voc.py 14-23).
    blur_taps: tuple[float, ...] = ()
    blur_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    # features
    # average over 2 x 2 before projector and classifier (models/model.py 112-113, 118-119; configuration 27)
    pooling: bool = True
    # 1 x 1 convolution to as many channels, ReLU, 1 x 1 convolution to dim (models/model.py 57-61;
    # configuration 28); false: the pooled decoder features, normalised (row VII)
    projector: bool = True
    dim: int = 128
    # directional contrastive loss
    temperature: float = 0.1  # τ (configuration 35)
    threshold: float = 0.75  # γ (configuration 31)
    directional: bool = True  # M_d: the less confident of a pair learns (models/model.py 233, 268)
    positive_filter: bool = True  # M_pf: only towards a confidence above γ (models/model.py 233, 268)
    # M_n: negatives have another pseudo-label (models/model.py 204, 211, 240, 247)
    negative_sampling: bool = True
    # Positions that the mean runs over: N, the whole overlap, or those that the masks keep in each direction.
    # Released: selected (models/model.py 235, 271).
    normalize: str = "overlap"
    # Earlier steps whose features are negatives too. Released: 1 on VOC with ResNet-50, 2 with ResNet-101, 0
    # on Cityscapes (models/model.py 186-194; step_save, line 36 of configs/voc_cac_deeplabv3+_resnet50_…, of
    # the three …_resnet101_…, and of city_cac_… at 4fdec7af).
    bank_steps: int = 0

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
        checks.reached(self, "start_share", protocol.steps)

    def check_network(self, network: SegmentationNetwork, background: int | None) -> None:
        """Refuse a stride at which the network has no features."""
        cell = self.cell(network)
        if cell % 1 or self.stride % cell:
            raise ValueError(
                f"stride: {self.stride} does not fit features that lie {cell:g} pixels apart: it must be a "
                "multiple of that, and that a whole number; change stride, pooling or the head"
            )

    def cell(self, network: SegmentationNetwork) -> float:
        """Return the pixels between the features that are compared."""
        return network.feature_stride * (2 if self.pooling else 1)


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
        self.cell = int(config.cell(self.student))
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

        negatives: (M, D); negative_labels: (M,); negative_valid: (M,) bool, None for all. Neither the
        negatives nor the other view's features get a gradient, as released (models/model.py 179, 197-198,
        288-291).
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
        """Return the features of this step, from every process, and of the bank: rows, labels, valid.

        All positions of the batch are negatives. The released code draws a fixed number from each view on
        each GPU (models/model.py 171-178): with the GPUs of its configurations (two for 6,400 on VOC, lines 7
        and 34; four for 16,200 on Cityscapes) that is all of them, with more GPUs it fails, with fewer it is
        a sample. Features of padding are negatives, and never overlap, as released (models/model.py 172-178,
        dataloaders/voc.py 129, 131).
        """
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
        with torch.no_grad():  # the classifier's dropout is active, as released (models/model.py 40, 124-125)
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
