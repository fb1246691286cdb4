"""FixMatch for segmentation, UniMatch and UniMatch V2: pseudo-labels of a weak view for strong ones.

Yang, Qi, Feng, Zhang, Shi: Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation,
CVPR 2023, which carries FixMatch (Sohn et al., NeurIPS 2020) over to pixels and adds UniMatch's second strong
view and feature perturbation. Yang, Zhao, Zhao: UniMatch V2, TPAMI 2025, puts complementary channel dropout
on the two strong views in place of the perturbed weak one. "Released code" is github.com/LiheYoung/UniMatch
at 0324f3dd and LiheYoung/UniMatch-V2 at f6afb4df; docs/deviations.md lists where it differs from the paper.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from semiseg.base import checks
from semiseg.base.distributed import gathered, uniform
from semiseg.base.parameters import Geometry, Protocol
from semiseg.data.augment import Pixels
from semiseg.losses import confident_cross_entropy
from semiseg.methods import contract
from semiseg.methods.common import (
    Colours,
    CutMix,
    HardExamples,
    apart,
    confident_share,
    cut_and_paste,
    cutmix_boxes,
    judged,
    predict,
    pseudo_labelled,
    strong_view,
    supervised_loss,
    together,
    weak_view,
)
from semiseg.methods.contract import IGNORE, TRUTH, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models import teacher
from semiseg.models.network import Maps, SegmentationNetwork, size_of
from semiseg.models.perturbations import channel_dropout, complementary_dropout

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """Hyper-parameters of FixMatch; ``unimatch`` and ``unimatch_v2`` are recipes.

    "Released:" names a value of the released code that differs from the paper. Line numbers are those of
    UniMatch.
    """

    by_parts: ClassVar[bool] = True
    labels_weak_view: ClassVar[bool] = True

    # total loss: (L_x + strong_weight L_s + feature_weight L_fp) / 2; L_s and L_fp are divided by all pixels
    # that are not padding (fixmatch.py 166; unimatch.py 176-188)
    strong_weight: float = 1.0  # μ; UniMatch: 0.5
    strong_views: int = 1  # L_s is their mean; UniMatch and UniMatch V2: 2
    feature_weight: float = 0.0  # λ; UniMatch: 0.5
    # Share of the channels dropped from the low and from the high map, the others scaled up
    # (model/semseg/deeplabv3plus.py 45-46).
    feature_dropout: float = 0.5
    # Whether, in half of the images, each of the two strong views drops the channels that the other keeps,
    # the same ones from every map (UniMatch V2, model/semseg/dpt.py).
    complementary_dropout: bool = False
    # The network that labels: the student in training mode (train), in evaluation mode (eval), or a moving
    # average in evaluation mode (teacher). Released: an image's own labels are train's (unimatch.py 151-159),
    # those that are pasted into it eval's (135-140).
    pseudo_labels: str = "train"
    threshold: float = 0.95  # τ (configs/pascal.yaml 16); 0 on Cityscapes (configs/cityscapes.yaml 18)
    teacher_decay: float = 0.996  # as in UniMatch V2
    # strong views
    colours: Colours = field(default_factory=Colours)
    cutmix: CutMix = field(default_factory=CutMix)
    # the supervised loss; hard examples on Cityscapes (configs/cityscapes.yaml 12-17)
    hard_examples: HardExamples | None = None

    def __post_init__(self) -> None:
        checks.one_of(self, "pseudo_labels", "train", "eval", "teacher", "released")
        checks.at_least(self, 0, "strong_weight", "feature_weight")
        checks.at_least(self, 1, "strong_views")
        checks.within(self, 0, 1, "threshold", "teacher_decay")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"feature_dropout: {self.feature_dropout} is outside [0, 1)")
        if self.complementary_dropout and self.strong_views != 2:
            raise ValueError(f"complementary_dropout: needs strong_views: 2, not {self.strong_views}")

    def check(self, protocol: Protocol) -> None:
        if self.hard_examples is not None:
            self.hard_examples.check(protocol)


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class WeakPass(NamedTuple):
    """Output of the first pass: logits (B, C, H, W) float32, and the weak views with pseudo-labels."""

    labelled: Tensor  # logits of the labelled images
    perturbed: Tensor | None  # logits of the weak views from perturbed features
    own: Pixels  # the weak views with their pseudo-labels
    pasted: Pixels  # the same with the pseudo-labels that CutMix pastes


class Method(contract.Method):
    """A student, and a moving-average teacher if one labels.

    The released code sets the learning rate after the step, and so uses the first one twice (unimatch.py
    205-208).
    """

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build()
        self.teacher = teacher.frozen_copy(self.student) if config.pseudo_labels == "teacher" else None

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return (L_x + weights x consistency of strong views and of perturbed features) / 2 and its parts.

        ``unlabelled`` holds image (B, 3, H, W) and mask (B, H, W), 255 on padding. Logs: supervised, strong,
        feature; confident, the share of pixels above the threshold.
        """
        assert unlabelled is not None
        config = self.config

        # The weak views are labelled; strong views of the same images learn from the pseudo-labels.
        weak = self._weak_pass(labelled.images, unlabelled["image"], unlabelled["mask"])
        strong = [self._strong_view(weak) for _ in range(config.strong_views)]
        logits = self._strong_pass([view.images for view in strong])

        supervised = supervised_loss(weak.labelled, labelled.masks, config.hard_examples)
        losses = map(self._consistency, logits, strong)
        consistency = torch.stack(list(losses)).mean()
        feature = torch.zeros_like(supervised)
        if weak.perturbed is not None:
            feature = self._consistency(weak.perturbed, weak.own)

        loss = (supervised + config.strong_weight * consistency + config.feature_weight * feature) / 2
        logs = {
            "supervised": supervised,
            "strong": consistency,
            "feature": feature,
            "confident": confident_share(weak.own.weights, weak.own.labels != IGNORE, config.threshold),
        }
        own = weak.own
        chosen = own.weights >= config.threshold
        logs |= judged(unlabelled.get(TRUTH), own.labels, chosen, self.student.num_classes)
        return loss, {name: log.detach() for name, log in logs.items()}

    def after_step(self, step: int) -> None:
        if self.teacher is not None:
            decay = teacher.true_average_decay(step, self.config.teacher_decay)
            teacher.follow(self.teacher, self.student, decay)

    def networks(self) -> dict[str, SegmentationNetwork]:
        if self.teacher is None:
            return {"student": self.student}
        return {"student": self.student, "teacher": self.teacher}

    def _weak_pass(self, labelled: Tensor, images: Tensor, padding: Tensor) -> WeakPass:
        """Pass labelled images and, where the options need them, weak views through the student at once.

        The released code perturbs labelled features too, whose logits it throws away; they count in the
        decoder's batch norm (unimatch.py 151-153).
        """
        mode, perturbs = self.config.pseudo_labels, self.config.feature_weight > 0
        evaluated = None
        if mode != "train":
            labeller = self.student if self.teacher is None else self.teacher
            evaluated = pseudo_labelled(images, padding, predict(labeller, images, training=False))

        labels_itself = mode in ("train", "released")
        batches = [labelled, images] if labels_itself or perturbs else [labelled]
        maps = [apart(each, *map(len, batches)) for each in self.student.encode(together(*batches))]
        if perturbs:
            maps = [(*each, self._perturbed(each[1])) for each in maps]
        features = self.student.decode(tuple(together(*each) for each in maps))
        logits = apart(self.student.logits(features, size_of(images)), *map(len, maps[0]))

        own = pseudo_labelled(images, padding, logits[1]) if labels_itself else evaluated
        assert own is not None
        return WeakPass(logits[0], logits[2] if perturbs else None, own, evaluated or own)

    def _strong_pass(self, views: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits of each strong view, from one pass of the student."""
        sizes = [len(view) for view in views]
        maps = self.student.encode(together(*views))
        if self.config.complementary_dropout:
            maps = self._complementary(maps, sizes[0])
        return apart(self.student.logits(self.student.decode(maps), size_of(views[0])), *sizes)

    def _complementary(self, maps: Maps, images: int) -> Maps:
        """Drop complementary channels from the views of half of the images, the same ones from every map."""
        device = maps[0].device
        draws = uniform(images, max(each.shape[1] for each in maps), device=device)
        order = uniform(images, device=device)
        everyone = gathered(order)
        untouched = order < everyone.sort().values[len(everyone) // 2]
        dropped: list[Tensor] = []
        for each in maps:
            one, two = apart(each, images, images)
            pair = complementary_dropout(one, two, draws[:, : each.shape[1]], untouched)
            dropped.append(together(*pair))
        return tuple(dropped)

    def _perturbed(self, features: Tensor) -> Tensor:
        """Drop whole channels of features (B, D, h, w)."""
        draws = uniform(len(features), 1, features.shape[1], device=features.device)
        return channel_dropout(features, draws, self.config.feature_dropout)[:, 0]

    def _strong_view(self, weak: WeakPass) -> Pixels:
        """Change the colours of the weak views, and paste a box of the next one into each."""
        images = strong_view(weak.own.images, self.config.colours)
        boxes = cutmix_boxes(images, self.config.cutmix)
        return cut_and_paste(weak.own._replace(images=images), boxes, weak.pasted._replace(images=images))

    def _consistency(self, logits: Tensor, view: Pixels) -> Tensor:
        return confident_cross_entropy(logits, view.labels, view.weights, self.config.threshold)
