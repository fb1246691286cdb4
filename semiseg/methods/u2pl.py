"""U2PL: unreliable pseudo-labels as negatives.

Wang, Wang, Shen, Fei, Li, Jin, Wu, Zhao, Le: Semi-Supervised Semantic Segmentation Using Unreliable
Pseudo-Labels, CVPR 2022. "Released code" is github.com/Haochen-Wang409/U2PL at ab3d2be3; docs/deviations.md
lists where it differs from the paper.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from semiseg.base import checks
from semiseg.base.distributed import following, gathered, global_mean, summed, uniform
from semiseg.base.parameters import Geometry, Protocol
from semiseg.losses import anchor_contrastive_loss, pixel_entropy, reliable_cross_entropy
from semiseg.losses.unreliable import quantile
from semiseg.methods import contract
from semiseg.methods.common import (
    CutMix,
    HardExamples,
    apart,
    at_features,
    cut_and_paste,
    cutmix_boxes,
    judged,
    mix,
    predict,
    pseudo_labelled,
    rows_of,
    supervised_loss,
    together,
    weak_view,
)
from semiseg.methods.contract import IGNORE, TRUTH, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models import teacher
from semiseg.models.class_queues import ClassQueues
from semiseg.models.layers import Dropout, convolution
from semiseg.models.network import SegmentationNetwork, size_of, upsample
from semiseg.models.pixel_samples import sampled, shuffled

REVISION = 2  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """U2PL's hyper-parameters.

    Defaults follow the paper and, where it is silent, the released code. "Released:" names a value that
    differs; the recipe ``u2pl-official`` sets those that an option has. "Configuration" is
    experiments/pascal/1464/ours/config.yaml; lines without a file are those of u2pl/utils/loss_helper.py.
    """

    labels_weak_view: ClassVar[bool] = True

    # total loss: L_s + λ_u L_u + contrast_weight L_c, the latter two from a share of the run on
    contrast_weight: float = 0.1  # λ_c. Released: 1 (train_semi.py 518)
    start_share: float = 1 / 80  # after one of 80 epochs on VOC (train_semi.py 288, default)
    hard_examples: HardExamples | None = None  # for L_s; released: on Cityscapes (its configuration)
    # teacher and pseudo-labels
    teacher_decay: float = 0.99  # a true average at first (train_semi.py 533-548)
    # Mode of the pass for entropies and representations: train, its own batch statistics, and only parameters
    # are averaged (train_semi.py 361); or eval, and buffers are averaged too. Labels always come from
    # evaluation mode (318).
    teacher_mode: str = "train"
    unreliable_share: float = 0.2  # α_0: of the pixels, falls linearly to zero (train_semi.py 378-379)
    # Probability 0.5 for each image, half of the area, width log-uniform. Released: for all images of a batch
    # or none, width uniform between half and whole (u2pl/dataset/augmentation.py 471-485; train_semi.py 327).
    cutmix: CutMix = field(default_factory=lambda: CutMix(area=(0.5, 0.5), aspect=None))
    # contrast
    # The paper has M = 50 and N = 256; asked about it, the authors call their configuration right (issue 31).
    anchors: int = 50  # M of a class. Released: 256 (configuration)
    negatives: int = 256  # N of an anchor. Released: 50 (configuration)
    temperature: float = 0.5  # τ (configuration, as the three below)
    confidence: float = 0.3  # δ_p: an anchor is labelled with a larger probability
    low_rank: int = 3  # r_l: labelled pixels are negatives of the classes of lower ranks, counted from 0
    high_rank: int = 20  # r_h: unreliable ones are negatives of the classes of ranks r_l to r_h − 1
    # Unlabelled pixels that may be anchors: the reliable ones, or those of the lowest α_t of the entropies.
    # Released: most_reliable (train_semi.py 397-410).
    anchor_pixels: str = "reliable"
    # Pixels whose mean is a class's positive: its anchors, or all its candidates, whatever their probability.
    # Released: all (119-123).
    centre: str = "anchors"
    # Classes that the contrast's mean runs over: all C, or those with a candidate for an anchor in the batch.
    # Released: present (152-154, 167, 235).
    class_mean: str = "all"
    dim: int = 256
    # the bank of negatives
    bank_size: int = 30_000  # features a class; released: 50,000 of background (train_semi.py 161-169)
    # Negatives of a class that enter at a step at most, a random sample, so that shapes are fixed; released:
    # all (142-150).
    bank_step: int = 2_000

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "contrast_weight")
        checks.within(self, 0, 1, "start_share", "teacher_decay", "unreliable_share", "confidence")
        checks.positive(self, "temperature")
        checks.at_least(self, 1, "anchors", "negatives", "dim", "bank_size", "bank_step")
        checks.at_least(self, 0, "low_rank", "high_rank")
        checks.one_of(self, "teacher_mode", "train", "eval")
        checks.one_of(self, "anchor_pixels", "reliable", "most_reliable")
        checks.one_of(self, "centre", "anchors", "all")
        checks.one_of(self, "class_mean", "all", "present")
        if self.bank_step > self.bank_size:
            raise ValueError(f"bank_step: {self.bank_step} is above bank_size, {self.bank_size}")
        if self.low_rank > self.high_rank:
            raise ValueError(f"low_rank: {self.low_rank} is above high_rank, {self.high_rank}")

    def check(self, protocol: Protocol) -> None:
        checks.reached(self, "start_share", protocol.steps)
        if self.hard_examples is not None:
            self.hard_examples.check(protocol)


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class Positions(NamedTuple):
    """All positions of the labelled and the unlabelled features, as rows."""

    student: Tensor  # (n, D), the student's representations
    teacher: Tensor  # (n, D), the teacher's, without gradient
    p: Tensor  # (n, C), the teacher's probabilities
    labels: Tensor  # (n,) int64, true or pseudo-labels, IGNORE where there is none
    labelled: Tensor  # (n,) bool, whether the label is true
    reliable: Tensor  # (n,) bool, of unlabelled ones: they may be anchors
    unreliable: Tensor  # (n,) bool, of unlabelled ones: they may be negatives


class Method(contract.Method):
    """A student, its moving-average teacher, their representation heads, and a bank of negatives."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        self.config, self.task, self.num_classes = config, task, self.student.num_classes
        self.start = round(config.start_share * task.total_steps)
        self.representation = _representation(self.student.feature_channels, config.dim)
        self.teacher = teacher.frozen_copy(self.student)
        self.teacher_representation = teacher.frozen_copy(self.representation)
        self.bank = ClassQueues(self.num_classes, config.bank_size, config.dim)

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the supervised, the pseudo-labels' and the contrastive loss, weighted, and its parts.

        ``unlabelled`` holds image (B, 3, H, W) and mask (B, H, W), 255 on padding. Before the start only the
        labelled images are learned.
        """
        assert unlabelled is not None
        config, truth = self.config, unlabelled.get(TRUTH)
        if step < self.start:
            loss = supervised_loss(self.student(labelled.images), labelled.masks, config.hard_examples)
            nothing = torch.zeros_like(unlabelled["mask"])
            return loss, {**self._logs(loss), **judged(truth, nothing, nothing, self.num_classes)}

        # The teacher labels the unlabelled images, and CutMix mixes both.
        images, padding = unlabelled["image"], unlabelled["mask"]
        weak = pseudo_labelled(images, padding, predict(self.teacher, images, training=False))
        boxes = cutmix_boxes(images, config.cutmix)
        mixed = cut_and_paste(weak, boxes)
        if truth is not None:
            truth = mix(truth, boxes, following(truth))

        # Both networks see all images. Padding has no pseudo-label and counts in no share; in the released
        # code it does. α_t falls by steps, there by epochs (train_semi.py 378, 397).
        sizes = len(labelled.images), len(images)
        joint = together(labelled.images, mixed.images)
        features = self.student.features(joint)
        labelled_logits, logits = apart(self.student.logits(features, size_of(images)), *sizes)
        teacher_logits, teacher_represented = self._teacher_pass(joint)

        # The least reliable pixels, by the teacher's entropy, are no pseudo-labels.
        known = mixed.labels != IGNORE
        _, of_unlabelled = apart(teacher_logits, *sizes)
        entropy = pixel_entropy(upsample(of_unlabelled, size_of(images), self.teacher.align_corners))
        share = config.unreliable_share * (1 - step / self.task.total_steps)
        limit = quantile(entropy, known, 1 - share)  # γ_t
        reliable = known & (entropy < limit)
        supervised = supervised_loss(labelled_logits, labelled.masks, config.hard_examples)
        unsupervised = reliable_cross_entropy(logits, mixed.labels, reliable)

        anchoring = reliable
        if config.anchor_pixels == "most_reliable":
            anchoring = known & (entropy <= quantile(entropy, known, share))
        nothing = torch.zeros_like(labelled.masks, dtype=torch.bool)
        contrast = self._contrast(
            Positions(
                rows_of(self.representation(features)),
                rows_of(teacher_represented),
                rows_of(torch.softmax(teacher_logits.float(), dim=1)),
                *(
                    at_features(together(*pair), size_of(features))
                    for pair in (
                        (labelled.masks, mixed.labels),
                        (~nothing, torch.zeros_like(known)),
                        (nothing, anchoring),
                        (nothing, known & (entropy >= limit)),
                    )
                ),
            )
        )
        loss = supervised + unsupervised + config.contrast_weight * contrast
        logs = self._logs(supervised, unsupervised, contrast, global_mean(reliable.sum(), known.sum()))
        return loss, {**logs, **judged(truth, mixed.labels, reliable, self.num_classes)}

    def after_step(self, step: int) -> None:
        # Before the start the teacher copies the student; in the released code its batch norm sees the
        # labelled images (train_semi.py 303-304).
        config = self.config
        decay = 0.0
        if step >= self.start:
            decay = teacher.true_average_decay(step - self.start, config.teacher_decay)
        buffers = config.teacher_mode == "eval" or step < self.start
        teacher.follow(self.teacher, self.student, decay, buffers=buffers)
        teacher.follow(self.teacher_representation, self.representation, decay, buffers=buffers)

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"teacher": self.teacher, "student": self.student}

    def _logs(self, supervised: Tensor, *others: Tensor) -> Logs:
        values = (supervised, *others, *[torch.zeros_like(supervised)] * (3 - len(others)))
        logs = dict(zip(("supervised", "unsupervised", "contrast", "reliable"), values, strict=True))
        logs["bank"] = self.bank.count.float().mean() / self.config.bank_size
        return {name: log.detach() for name, log in logs.items()}

    @torch.no_grad()
    def _teacher_pass(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits and representations at the features' resolution."""
        training = self.config.teacher_mode == "train"
        features = self.teacher.train(training).features(images)
        return self.teacher.classify(features), self.teacher_representation.train(training)(features)

    # --- contrast -------------------------------------------------------------------------------------

    def _contrast(self, of: Positions) -> Tensor:
        """Pull each class's anchors to their centre, and push them from the class's negatives.

        Anchors are drawn without repetition, and a class with fewer takes all it has; the released code
        repeats (179-184 of u2pl/utils/loss_helper.py). A class that the batch lacks adds zero; there it
        shifts the classes after it, whose anchors meet the negatives of another (152-154, 173-192).
        """
        config, classes = self.config, self.num_classes
        known = of.labels < classes
        own = of.p.gather(1, torch.where(known, of.labels, 0)[:, None])[:, 0]
        candidate = known & (of.labelled | of.reliable)
        anchor = candidate & (own > config.confidence)

        positives = _centres(of.teacher, candidate if config.centre == "all" else anchor, of.labels, classes)
        self._bank_negatives(of)

        present = None
        if config.class_mean == "present":
            present = summed(_members(candidate, of.labels, classes).sum(dim=1)) > 0
        group = torch.where(anchor, of.labels, classes)
        place, size = shuffled(group, classes)
        slots = torch.where(anchor & (place < config.anchors), group * config.anchors + place, -1)
        anchors = sampled(of.student, slots, classes * config.anchors).unflatten(0, (classes, -1))
        drawn = torch.arange(config.anchors, device=size.device) < size[:, None]
        return anchor_contrastive_loss(
            anchors,
            drawn & (self.bank.count > 0)[:, None],
            positives,
            self.bank.drawn(config.anchors, config.negatives),
            temperature=config.temperature,
            present=present,
        )

    @torch.no_grad()
    def _bank_negatives(self, of: Positions) -> None:
        """Put a random sample of each class's negatives into its bank.

        A labelled pixel is a negative of the likely classes that it does not belong to, an unreliable one of
        its unlikely classes (U2PL, equations 15-17). Unreliable are the pixels of the highest α_t of the
        entropies, as released, and never padding. The bank lies on the device and holds rows of norm one,
        because only cosines are taken; the released code's is on the host, with the rows as they are.
        """
        config, classes = self.config, torch.arange(self.num_classes, device=of.labels.device)
        rank = of.p.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (n, C), from 0
        wrong = (of.labels != IGNORE)[:, None] & (of.labels[:, None] != classes) & (rank < config.low_rank)
        unlikely = of.unreliable[:, None] & (rank >= config.low_rank) & (rank < config.high_rank)
        negative = torch.where(of.labelled[:, None], wrong, unlikely)

        keys = uniform(len(negative), device=negative.device)[:, None]
        keys, drawn = torch.where(negative, keys, -1).topk(min(config.bank_step, len(negative)), dim=0)
        rows = gathered(normalize(of.teacher[drawn].float(), dim=2))  # (n, C, D), of all processes
        keys, drawn = gathered(keys).topk(min(config.bank_step, len(rows)), dim=0)
        entering = rows[drawn, classes].transpose(0, 1)
        self.bank.add(entering, (keys >= 0).sum(dim=0))


def _representation(inputs: int, dim: int) -> nn.Module:
    """Return two blocks of 3 x 3 convolution, batch norm, ReLU and dropout, and a 1 x 1 convolution.

    They read the decoder's features; the released code's read its input (u2pl/models/decoder.py 94-110) and
    drop whole channels.
    """
    return nn.Sequential(
        convolution(inputs, dim, 3),
        Dropout(0.1),
        convolution(dim, dim, 3),
        Dropout(0.1),
        nn.Conv2d(dim, dim, 1),
    )


@torch.no_grad()
def _centres(rows: Tensor, counted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class's counted rows (n, D): (C, D) float32, zero for a class without any."""
    member = _members(counted, labels, num_classes)
    with torch.autocast(rows.device.type, enabled=False):
        sums = summed(member.float() @ rows.float())
    return sums / summed(member.sum(dim=1, keepdim=True)).clamp(min=1)


def _members(counted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return which of the counted rows belong to each class: (C, n) bool."""
    return counted & (labels == torch.arange(num_classes, device=labels.device)[:, None])
