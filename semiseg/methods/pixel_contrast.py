"""Supervised contrast of labelled pixels across images.

Wang, Zhou, Yu, Dai, Konukoglu, Van Gool: Exploring Cross-Image Pixel Contrast for Semantic Segmentation, ICCV
2021, without its memory bank. Its loss is that of supervised contrastive learning (Khosla et al., NeurIPS
2020) with another denominator, which is an option. "Released code" is github.com/tfzhou/ContrastiveSeg at
287e5d30; docs/deviations.md lists where it differs from the paper.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from semiseg.base import checks
from semiseg.base.parameters import Geometry, Protocol
from semiseg.losses import confident_cross_entropy, cross_entropy, supervised_contrastive_loss
from semiseg.methods import contract
from semiseg.methods.common import (
    Colours,
    CutMix,
    cut_and_paste,
    cutmix_boxes,
    predict,
    pseudo_labelled,
    rows_of,
    strong_view,
    weak_view,
)
from semiseg.methods.contract import Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models.layers import convolution
from semiseg.models.network import SegmentationNetwork, size_of, upsample
from semiseg.models.pixel_samples import hard_and_easy, sampled

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """The hyper-parameters of pixel contrast; the defaults follow the paper.

    ContrastiveSeg's lines are those of lib/loss/loss_contrast.py, SupCon's those of losses.py, and
    "configuration" is configs/cityscapes/H_48_D_4.json.
    """

    # total loss: cross-entropy + weight x contrast, from a share of the run on
    weight: float = 0.1  # Released: times temperature / 0.07 (125); recipe pixel_contrast-official
    start_share: float = 1 / 8  # share of the run's steps; released: 5,000 of 40,000 (configuration 109, 143)
    # contrast
    # Denominator: the positive itself and the negatives (116-121), or all other samples (others, as in
    # SupCon, losses.py 87-89; recipe pixel_contrast-supcon).
    denominator: str = "negatives"
    temperature: float = 0.1  # τ (configuration 138); SupCon: 0.07 (losses.py 14)
    # 1 x 1 convolution, batch norm, ReLU, 1 x 1 convolution to dim (lib/models/modules/projection.py 17-21)
    dim: int = 256
    # samples (39, 47-48)
    max_samples: int = 1024  # samples of a step
    max_views: int = 100  # samples of a class in an image; a class with no more pixels there has none
    # Unlabelled images: not read (none), or FixMatch's loss beside the supervised one (fixmatch), with labels
    # from evaluation mode, as the recipe fixmatch-eval has them.
    unlabelled: str = "none"
    threshold: float = 0.95  # confidence of FixMatch's pseudo-labels

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "weight")
        checks.at_least(self, 1, "dim", "max_samples", "max_views")
        checks.positive(self, "temperature")
        checks.within(self, 0, 1, "start_share", "threshold")
        checks.one_of(self, "denominator", "negatives", "others")
        checks.one_of(self, "unlabelled", "none", "fixmatch")

    def check(self, protocol: Protocol) -> None:
        """Refuse a start of the contrast that no step of the run reaches."""
        checks.reached(self, "start_share", protocol.steps)


def views(config: Config, geometry: Geometry) -> View | None:
    """Return None, or for FixMatch's loss the weak view of an unlabelled image."""
    return None if config.unlabelled == "none" else weak_view(geometry)


class Method(contract.Method):
    """A network and the projection in which its pixels are compared."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        channels = self.student.feature_channels
        self.config = config
        self.start = config.start_share * task.total_steps
        self.projection = nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, config.dim, 1))

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the segmentation loss + weight x the contrast of labelled pixels, and its parts.

        ``unlabelled`` is None unless FixMatch's loss is added. Logs: supervised, contrast, samples; strong
        with FixMatch's loss.
        """
        config = self.config
        features = self.student.features(labelled.images)
        logits = self.student.classify(features)
        large = upsample(logits, size_of(labelled.masks), self.student.align_corners)
        segmentation = cross_entropy(large, labelled.masks)
        logs = {"supervised": segmentation}
        if unlabelled is not None:
            logs["strong"] = self._fixmatch(unlabelled)
            segmentation = (segmentation + logs["strong"]) / 2
        contrast, samples = torch.zeros_like(segmentation), torch.zeros_like(segmentation)
        if step >= self.start:
            contrast, samples = self._contrast(features, logits, labelled.masks)
        logs |= {"contrast": contrast, "samples": samples}
        loss = segmentation + config.weight * contrast
        return loss, {name: log.detach() for name, log in logs.items()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student}

    def _contrast(self, features: Tensor, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contrast of sampled labelled pixels, half of them hard, and their number."""
        config, num_classes = self.config, self.student.num_classes
        embedded = normalize(self.projection(features).float(), dim=1)
        labels = interpolate(masks[:, None].float(), size_of(features))[:, 0].long()  # the nearest
        slots = hard_and_easy(
            labels.flatten(1),
            logits.argmax(dim=1).flatten(1),
            num_classes,
            config.max_samples,
            config.max_views,
        ).flatten()
        samples = sampled(rows_of(embedded), slots, config.max_samples)
        # −1: an empty slot
        classes = sampled(labels.flatten()[:, None] + 1, slots, config.max_samples)[:, 0] - 1
        loss = supervised_contrastive_loss(
            samples,
            classes,
            classes >= 0,
            temperature=config.temperature,
            denominator=config.denominator,
        )
        return loss, (classes >= 0).sum().float()

    def _fixmatch(self, unlabelled: Unlabelled) -> Tensor:
        """Return the cross-entropy of a strong view with the confident predictions of the weak one."""
        images = unlabelled["image"]
        weak = pseudo_labelled(images, unlabelled["mask"], predict(self.student, images, training=False))
        strong = weak._replace(images=strong_view(images, Colours()))
        strong = cut_and_paste(strong, cutmix_boxes(images, CutMix()))
        return confident_cross_entropy(
            self.student(strong.images), strong.labels, strong.weights, self.config.threshold
        )
