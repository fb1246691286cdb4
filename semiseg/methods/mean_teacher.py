"""Mean teacher, and CutMix-Seg: consistency with the moving average of the student.

Tarvainen, Valpola: Mean teachers are better role models, NeurIPS 2017, on pixels as TorchSemiSeg has it.
CutMix-Seg: French, Laine, Aila, Mackiewicz, Finlayson: Semi-supervised semantic segmentation needs strong,
varied perturbations, BMVC 2020. "Released code" is github.com/charlesCXK/TorchSemiSeg at 5e0c29c0 and
github.com/Britefury/cutmix-semisup-seg at af6183a6; docs/deviations.md lists where they differ from the
papers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from semiseg.base import checks
from semiseg.base.distributed import following
from semiseg.base.parameters import Geometry, Protocol
from semiseg.losses import consistency_loss
from semiseg.losses.consistency import COSTS
from semiseg.methods import contract
from semiseg.methods.common import (
    Colours,
    CutMix,
    HardExamples,
    confident_share,
    cutmix_boxes,
    judged,
    mix,
    predict,
    ramp_up,
    strong_view,
    supervised_loss,
    weak_view,
)
from semiseg.methods.contract import IGNORE, TRUTH, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models import teacher
from semiseg.models.network import SegmentationNetwork

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """Mean teacher's hyper-parameters; the recipe ``cutmix_seg`` sets its own.

    TorchSemiSeg's lines are those of exp.voc/voc8.res50v3+.MeanTeacher, CutMix-Seg's those of
    train_seg_semisup_mask_mt.py (``mask_mt``).
    """

    by_parts: ClassVar[bool] = True
    labels_weak_view: ClassVar[bool] = True

    # total loss: L_sup + weight x ramp-up x share of confident pixels x consistency
    # 100 throughout (config.py 73, train.py 192); the paper, for images: 100 after a ramp-up. CutMix-Seg: 1.
    weight: float = 100.0
    # Squared difference of the probabilities: mse, its mean over the classes (train.py 75, 189); or squared,
    # its sum (CutMix-Seg, mask_mt 428-431); or cross_entropy.
    cost: str = "mse"
    # Consistency of labelled images too (train.py 180-189). CutMix-Seg: false (mask_mt 309-331).
    labelled: bool = True
    ramp_up_steps: int = 0  # until the consistency counts in full
    # Confidence from which a pixel counts in the share that multiplies the loss, which is no mask.
    # CutMix-Seg: 0.97 (mask_mt 407-418, 451).
    threshold: float = 0.0
    teacher_decay: float = 0.99  # (config.py 74; mask_mt 597)
    # Batch statistics, and only parameters are averaged (network.py 37-38, 45-47). CutMix-Seg: false; frozen
    # (--freeze_bn in its scripts), and buffers are averaged too (optim_weight_ema.py 9-10).
    teacher_training_mode: bool = True
    # Network that a table shows: the teacher, as in the paper, or the student. Released: student (network.py
    # 26-28); recipe mean_teacher-official.
    headline: str = "teacher"
    # The student's view of an unlabelled image: the teacher's, unless these change it.
    # cutmix_seg-official: jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8, grey 0.2 (mask_mt 170-179, 608-613;
    # --aug_strong_colour in the scripts).
    colours: Colours | None = None
    # CutMix-Seg: a box of half the area from another image, log-uniform in shape (mask_gen.py 73-89).
    cutmix: CutMix | None = None
    # the supervised loss
    hard_examples: HardExamples | None = None

    def __post_init__(self) -> None:
        checks.one_of(self, "cost", *COSTS)
        checks.one_of(self, "headline", "teacher", "student")
        checks.at_least(self, 0, "weight", "ramp_up_steps")
        checks.within(self, 0, 1, "threshold", "teacher_decay")

    def check(self, protocol: Protocol) -> None:
        if self.ramp_up_steps > protocol.steps:
            raise ValueError(f"ramp_up_steps: {self.ramp_up_steps} are more than the {protocol.steps} steps")
        if self.hard_examples is not None:
            self.hard_examples.check(protocol)


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class Method(contract.Method):
    """A student and its moving-average teacher."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build()
        self.teacher = teacher.frozen_copy(self.student)

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the supervised loss + weight x consistency with the teacher, and its parts.

        ``unlabelled`` holds image (B, 3, H, W) and mask (B, H, W), 255 on padding. Logs: supervised,
        consistency (before its weight); confident, the share of pixels above the threshold.
        """
        assert unlabelled is not None
        config = self.config

        # The teacher sees the weak view, the student its own view.
        images, inside = unlabelled["image"], unlabelled["mask"] != IGNORE
        targets = self._targets(images)
        likeliest, labels = targets.max(dim=1)
        # The threshold is no mask; the log counts the pixels above it as pseudo-labelled.
        counts = judged(
            unlabelled.get(TRUTH), labels, likeliest >= config.threshold, self.student.num_classes
        )
        if config.colours is not None:
            images = strong_view(images, config.colours)
        if config.cutmix is not None:
            boxes = cutmix_boxes(images, config.cutmix)
            images, targets, inside = (
                mix(each, boxes, following(each)) for each in (images, targets, inside)
            )
        labelled_logits, logits = self.student(labelled.images), self.student(images)
        supervised = supervised_loss(labelled_logits, labelled.masks, config.hard_examples)

        if config.labelled:
            logits = torch.cat((labelled_logits, logits))
            targets = torch.cat((self._targets(labelled.images), targets))
            inside = torch.cat((torch.ones_like(labelled.masks, dtype=torch.bool), inside))
        confident = confident_share(targets.amax(dim=1), inside, config.threshold)
        consistency = confident * consistency_loss(logits, targets, inside, cost=config.cost)

        loss = supervised + config.weight * ramp_up(step, config.ramp_up_steps) * consistency
        logs = {"supervised": supervised, "consistency": consistency, "confident": confident}
        logs |= counts
        return loss, {name: log.detach() for name, log in logs.items()}

    def after_step(self, step: int) -> None:
        # The true average until 0.99 exceeds it, as in the paper. Both releases average with 0.99 from a copy
        # of the student on (TorchSemiSeg network.py 31-33, 45-47; optim_weight_ema.py 12-13), TorchSemiSeg
        # between the passes of a step and so before the optimiser (network.py 35-41).
        decay = teacher.true_average_decay(step, self.config.teacher_decay)
        teacher.follow(self.teacher, self.student, decay, buffers=not self.config.teacher_training_mode)

    def networks(self) -> dict[str, SegmentationNetwork]:
        networks = {"teacher": self.teacher, "student": self.student}
        first = self.config.headline
        return {first: networks.pop(first), **networks}

    def _targets(self, images: Tensor) -> Tensor:
        """Return the teacher's probabilities, (B, C, H, W) float32."""
        return predict(self.teacher, images, training=self.config.teacher_training_mode).softmax(dim=1)
