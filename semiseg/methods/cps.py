"""CPS: cross pseudo supervision of two networks.

Chen, Yuan, Zeng, Wang: Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision, CVPR 2021.
"Released code" is github.com/charlesCXK/TorchSemiSeg at 5e0c29c0; docs/deviations.md lists where it differs
from the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from semiseg.base import checks
from semiseg.base.distributed import following
from semiseg.base.parameters import Geometry, Protocol
from semiseg.losses import cross_entropy
from semiseg.methods import contract
from semiseg.methods.common import (
    CutMix,
    HardExamples,
    cutmix_boxes,
    judged,
    mix,
    predict,
    supervised_loss,
    weak_view,
)
from semiseg.methods.contract import IGNORE, TRUTH, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models import teacher
from semiseg.models.network import SegmentationNetwork

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """CPS's hyper-parameters; the defaults follow the paper on VOC without CutMix.

    Lines are those of the released code's folders in exp.voc and exp.city: voc8.res50v3+.CPS (VOC),
    .CPS+CutMix (CutMix), and those of the same names for Cityscapes.
    """

    by_parts: ClassVar[bool] = True
    labels_weak_view: ClassVar[bool] = True

    # λ: 1.5 on VOC, 6 on Cityscapes (config.py VOC 74, Cityscapes 78). Released with CutMix: 1 and 5 (CutMix
    # config.py 73, Cityscapes 78); recipes cps-official_voc and cps-official_cityscapes.
    weight: float = 1.5
    # The cross term covers labelled images too (VOC train.py 185-194); false with CutMix (CutMix train.py
    # 231-239).
    labelled: bool = True
    # The networks that label: in training mode (train; VOC train.py 140, 178-190), in evaluation mode (eval),
    # or their moving averages (teacher).
    pseudo_labels: str = "train"
    teacher_decay: float = 0.99
    # Boxes pasted into unlabelled images. cps-cutmix: three, each a third of 25 to 50 %, height log-uniform;
    # where two overlap nothing is pasted (CutMix config.py 75-80, mask_gen.py 49-93).
    cutmix: CutMix | None = None
    # Released on Cityscapes: 50,000 pixels of each image, probability 0.7 (Cityscapes train.py 74-76).
    hard_examples: HardExamples | None = None

    def __post_init__(self) -> None:
        checks.one_of(self, "pseudo_labels", "train", "eval", "teacher")
        checks.at_least(self, 0, "weight")
        checks.within(self, 0, 1, "teacher_decay")

    def check(self, protocol: Protocol) -> None:
        if self.hard_examples is not None:
            self.hard_examples.check(protocol)


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class Method(contract.Method):
    """Two networks with the same pretrained backbone, whose other weights are drawn apart.

    One optimiser trains both. The released code has one for each (VOC train.py 96-119): the same steps, but
    for a limit on the gradient's norm, and no decay of biases and of batch norm's scale and shift
    (furnace/utils/init_func.py 44-73).
    """

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = build(), build()
        averaged = config.pseudo_labels == "teacher"
        self.first_teacher = teacher.frozen_copy(self.first) if averaged else None
        self.second_teacher = teacher.frozen_copy(self.second) if averaged else None

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the supervised loss of both networks + weight x their crossed one, and both parts.

        ``unlabelled`` holds image (B, 3, H, W) and mask (B, H, W), 255 on padding. Logs: supervised, crossed.
        """
        assert unlabelled is not None
        config, networks = self.config, (self.first, self.second)

        # Each network labels; None: the classes that the passes below give.
        images, inside = unlabelled["image"], unlabelled["mask"] != IGNORE
        apart = config.pseudo_labels != "train"
        unmixed = labels = self._label(images) if apart or config.cutmix is not None else None
        more_labels = self._label(labelled.images) if apart and config.labelled else None
        if config.cutmix is not None:
            assert labels is not None
            boxes = cutmix_boxes(images, config.cutmix)
            images, inside, labels = (mix(each, boxes, following(each)) for each in (images, inside, labels))

        # With CutMix the released code passes labelled images last (CutMix train.py 211-243), which then have
        # the last word in batch norm's running statistics.
        labelled_logits = [network(labelled.images) for network in networks]
        logits = [network(images) for network in networks]
        labels = _classes(logits) if labels is None else labels
        unmixed = labels if unmixed is None else unmixed
        labels = labels.masked_fill(~inside[:, None], IGNORE)
        if config.labelled:
            logits = [torch.cat(pair) for pair in zip(labelled_logits, logits, strict=True)]
            labels = torch.cat((_classes(labelled_logits) if more_labels is None else more_labels, labels))

        # Each network learns the other one's labels.
        one, other = (supervised_loss(each, labelled.masks, config.hard_examples) for each in labelled_logits)
        supervised = one + other
        crossed = cross_entropy(logits[0], labels[:, 1]) + cross_entropy(logits[1], labels[:, 0])
        loss = supervised + config.weight * crossed
        logs = {"supervised": supervised.detach(), "crossed": crossed.detach()}
        return loss, {**logs, **self._judged(unlabelled.get(TRUTH), unmixed)}

    def after_step(self, step: int) -> None:
        decay = teacher.true_average_decay(step, self.config.teacher_decay)
        if self.first_teacher is not None and self.second_teacher is not None:
            teacher.follow(self.first_teacher, self.first, decay)
            teacher.follow(self.second_teacher, self.second, decay)

    def networks(self) -> dict[str, SegmentationNetwork]:
        networks = {
            "first": self.first,
            "second": self.second,
            "first_teacher": self.first_teacher,
            "second_teacher": self.second_teacher,
        }
        return {name: network for name, network in networks.items() if network is not None}

    def _judged(self, truth: Tensor | None, labels: Tensor) -> Logs:
        """Count both networks' labels (B, 2, H, W) against the truth (B, H, W), if there is one."""
        if truth is None:
            return {}
        truth = truth[:, None].expand_as(labels)
        return judged(truth, labels, torch.ones_like(labels), self.first.num_classes)

    def _label(self, images: Tensor) -> Tensor:
        """Return both networks' labels of images (B, 3, H, W): (B, 2, H, W) int64."""
        training = self.config.pseudo_labels == "train"
        labellers = (self.first_teacher or self.first, self.second_teacher or self.second)
        return _classes([predict(labeller, images, training=training) for labeller in labellers])


def _classes(logits: Sequence[Tensor]) -> Tensor:
    """Return the most probable classes, (B, n, H, W) int64, of n networks' logits (B, C, H, W)."""
    return torch.stack([each.argmax(dim=1) for each in logits], dim=1)
