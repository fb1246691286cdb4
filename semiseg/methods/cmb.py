"""CMB: pixel-level contrastive learning from a class-wise memory bank.

Alonso, Sabater, Ferstl, Montesano, Murillo: Semi-Supervised Semantic Segmentation with Pixel-Level
Contrastive Learning from a Class-wise Memory Bank, ICCV 2021. "Released code" is
github.com/Shathe/SemiSeg-Contrastive at dc53c6da; docs/deviations.md lists its differences from the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.base import checks, distributed
from semiseg.base.parameters import Geometry, Protocol
from semiseg.data.augment import (
    Pixels,
    classmix,
    colour_jitter,
    gaussian_blur,
    random_flip,
    random_scale_crop,
)
from semiseg.losses import class_memory_loss, cross_entropy, entropy_loss
from semiseg.losses.class_balance import median_frequency_weights
from semiseg.methods import contract
from semiseg.methods.common import at_features, judged, pseudo_labelled, ramp_up, rows_of, weak_view
from semiseg.methods.contract import IGNORE, TRUTH, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models import teacher
from semiseg.models.class_memory import ClassMemory
from semiseg.models.network import SegmentationNetwork, size_of
from semiseg.models.pixel_heads import ClassAttention, PixelHead

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """CMB's hyper-parameters.

    Defaults follow the paper and, where it is silent, the released code, whose lines are given. "Released:"
    names a value that differs; the recipe ``cmb-official`` sets all but class_balance, which a protocol sets.
    """

    labels_weak_view: ClassVar[bool] = True

    # total loss: L_sup + the three terms below, each times its weight (trainSSL.py 587, 591, 658, 683)
    pseudo_weight: float = 1.0
    entropy_weight: float = 0.01
    contrast_weight: float = 0.1
    # schedules, in steps
    # Pseudo-labels count exp(−5 (1 − t / ramp_up_steps)²) (trainSSL.py 96-111, 367). ClassMix of unlabelled
    # images, contrast and class balance start when they count in full.
    ramp_up_steps: int = 2000
    memory_lead_steps: int = 1000  # the memory starts to fill so long before the contrast (trainSSL.py 594)
    # Start ClassMix, contrast, class balance and memory one step later. Released: true, as each starts after
    # step 2,000, the memory after step 1,000 (trainSSL.py 542, 567, 594, 639).
    start_late: bool = False
    # teacher
    teacher_decay: float = 0.995  # grows to 1 along a cosine (trainSSL.py 692)
    # At first the teacher is the true average, 1 − 1 / (teacher_rate t + 1). Released: 10 (trainSSL.py 253).
    teacher_rate: float = 1.0
    # Label with batch statistics, and average parameters alone. Paper: silent. Released: true, throughout
    # (trainSSL.py 459, 254-255).
    teacher_training_mode: bool = False
    # pseudo-labels
    confidence_power: float = 6.0  # weight a pseudo-label by confidence^k (trainSSL.py 582); 0: all alike
    entropy_normalised: bool = False  # divide by log C. Released: true (trainSSL.py 41-48)
    # Weight both cross-entropies by class. Released: on Cityscapes, after the ramp-up (trainSSL.py 530-531,
    # 567-569; utils/class_balancing.py 97-117).
    class_balance: bool = False
    # contrast
    # Side whose features attention weights, with mean one in a class: both, prediction, or none. Released:
    # prediction; weights on the memory's side cancel to one, because their mean is taken over a dimension of
    # one (contrastive_losses.py 57-61).
    attention: str = "both"
    dim: int = 256  # width of the heads (trainSSL.py 396)
    # A class with fewer pixels, or with fewer features in the memory, adds zero. Released: 2
    # (contrastive_losses.py 31).
    least_features: int = 1
    # memory
    memory_size: int = 256  # features a class (trainSSL.py 396)
    # Remember only pixels that the teacher gets right with confidence above memory_confidence (trainSSL.py
    # 619).
    memory_filter: bool = True
    memory_confidence: float = 0.95
    # Pixels of a step that enter first: highest or lowest attention, or random. Released: lowest, because it
    # sorts upwards (utils/feature_memory.py 49-57).
    memory_order: str = "highest"
    # Order a class's pixels even when all of them enter; a full memory drops the last, so the order decides
    # which stay. Released: false, by attention only above the budget and else in raster order
    # (utils/feature_memory.py 46-59).
    memory_rank_all: bool = True
    # Classes that an image is taken to hold, for the budget of a step: max(1, round(256 / labelled)) features
    # for each image and class (all), times C / 3 (few; as released on VOC) (utils/feature_memory.py 16-19,
    # 38).
    images_hold: str = "all"
    # Pass the strong views before the labelled ones. Released: true, so labelled images have the last word in
    # batch norm's running statistics (trainSSL.py 558, 562).
    strong_first: bool = False
    # ClassMix
    mix_labelled: float = 0.2  # probability (trainSSL.py 534)
    mix_unlabelled: float = 0.75  # probability, after the ramp-up (trainSSL.py 542, 550)
    # Classes pasted beyond half of an image's n (ClassMix, WACV 2021). Released: 1, as it pastes ⌊n/2⌋ + 1
    # (trainSSL.py 294-295).
    mix_extra_classes: int = 0
    # colours of labelled images (trainSSL.py 311, 324; utils/transformsgpu.py 97)
    weak_jitter: tuple[float, float, float, float] = (0.125, 0.125, 0.0625, 0.125 / 3)  # as strong_jitter
    weak_jitter_probability: float = 0.2
    # the two strong views of an unlabelled image (trainSSL.py 328-344)
    strong_scale: tuple[float, float] = (0.75, 1.75)
    strong_scale_probability: float = 0.8
    strong_flip_probability: float = 0.5
    # brightness, contrast, saturation, hue
    strong_jitter: tuple[float, float, float, float] = (0.25, 0.25, 0.125, 0.25 / 3)
    strong_jitter_probability: float = 0.8
    strong_blur: tuple[float, float] = (0.1, 1.5)  # standard deviation in pixels, U(strong_blur)
    strong_blur_probability: float = 0.2
    # Jitter as kornia 0.4.1: brightness is added, contrast is about black, saturation is HSV's; else as
    # torchvision. Released: true (utils/transformsgpu.py 97, requirements.txt 3).
    jitter_additive: bool = False
    # Take strong_blur as the deviations down columns and along rows. Released: true, as kornia reads the pair
    # 0.1 and 1.5 so: 1.5 pixels along rows, none down columns (utils/transformsgpu.py 119, trainSSL.py 343).
    blur_by_axis: bool = False

    def __post_init__(self) -> None:
        checks.one_of(self, "attention", "both", "prediction", "none")
        checks.one_of(self, "memory_order", "highest", "lowest", "random")
        checks.one_of(self, "images_hold", "all", "few")
        if self.attention == "none" and self.memory_order != "random":
            raise ValueError("attention: none leaves nothing to rank by: memory_order must be random")
        checks.at_least(self, 0, "pseudo_weight", "entropy_weight", "contrast_weight", "confidence_power")
        checks.at_least(self, 0, "ramp_up_steps", "memory_lead_steps", "teacher_rate", "mix_extra_classes")
        checks.at_least(self, 1, "dim", "memory_size", "least_features")
        checks.within(self, 0, 1, "teacher_decay", "memory_confidence", "mix_labelled", "mix_unlabelled")
        checks.within(self, 0, 1, "weak_jitter_probability", "strong_jitter_probability")
        checks.within(self, 0, 1, "strong_scale_probability", "strong_flip_probability")
        checks.within(self, 0, 1, "strong_blur_probability")
        checks.at_least(self, 0, "weak_jitter", "strong_jitter")
        checks.positive(self, "strong_scale", "strong_blur")
        checks.ascending(self, "strong_scale", "strong_blur")
        for name in ("weak_jitter", "strong_jitter"):
            hue = getattr(self, name)[3]
            if hue > 0.5:
                raise ValueError(f"{name}: hue {hue} is more than half a turn")

    def check(self, protocol: Protocol) -> None:
        """Refuse a ramp-up that the contrast never outlives and a memory that starts before the run."""
        if self.start >= protocol.steps:
            raise ValueError(
                f"ramp_up_steps: {self.ramp_up_steps} leaves no step for the contrast in a run of "
                f"{protocol.steps}; lower it for this protocol"
            )
        if self.memory_lead_steps > self.ramp_up_steps:
            raise ValueError(
                f"memory_lead_steps: {self.memory_lead_steps} is more than ramp_up_steps, "
                f"{self.ramp_up_steps}; lower it for this protocol"
            )

    @property
    def start(self) -> int:
        """The first step (from 0) with ClassMix of unlabelled images, contrast and class balance."""
        return self.ramp_up_steps + self.start_late


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class Method(contract.Method):
    """A student, its moving-average teacher, and a memory of the teacher's features of labelled pixels."""

    label_frequencies: Tensor  # (C,) float32, pixels of each class, a mean over the labelled images seen
    pseudo_frequencies: Tensor  # (C,) float32, the same of pseudo-labels, over about the last pass

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        num_classes, dim = self.student.num_classes, config.dim
        self.config, self.task, self.num_classes = config, task, num_classes
        self.projection = PixelHead(self.student.feature_channels, dim)
        self.prediction = PixelHead(dim, dim)
        self.prediction_attention = ClassAttention(num_classes, dim) if config.attention != "none" else None
        self.memory_attention = ClassAttention(num_classes, dim) if config.attention == "both" else None

        self.teacher = teacher.frozen_copy(self.student)
        self.teacher_projection = teacher.frozen_copy(self.projection)
        # The released code ranks candidates by the teacher's copy of the prediction side
        # (utils/feature_memory.py 43; trainSSL.py 635), and so does attention: prediction.
        ranking = self.memory_attention or self.prediction_attention
        self.teacher_attention = teacher.frozen_copy(ranking) if ranking is not None else None

        self.memory = ClassMemory(num_classes, config.memory_size, dim)
        self.register_buffer("label_frequencies", torch.zeros(num_classes))
        self.register_buffer("pseudo_frequencies", torch.zeros(num_classes))

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return L_sup + L_pseudo + λ_ent L_ent + λ_contr L_contr (section 3.1) and its parts.

        ``unlabelled`` holds image (B, 3, H, W) and mask (B, H, W), 255 on padding. Logs: supervised, pseudo
        (with the ramp-up), entropy, contrast; memory, the share that is filled; attention_prediction and
        attention_memory, how far the weights of either side spread.
        """
        assert unlabelled is not None
        config = self.config
        self._set_teacher_mode()

        # Augmentation anchoring: the teacher labels the weak view, the student learns from two strong ones.
        with torch.no_grad():
            logits = self.teacher(unlabelled["image"])
        anchor = pseudo_labelled(unlabelled["image"], unlabelled["mask"], logits)
        class_weights = self.class_weights(labelled.masks, anchor.labels, step)
        weak = self.weak_view(labelled)
        # The released code takes half a labelled batch of images (trainSSL.py 363), here the protocol's
        # batch.
        strong = _joined(self.strong_view(anchor, step), self.strong_view(anchor, step))

        if config.strong_first:  # batch norm's running statistics end with the second pass
            strong_features, strong_logits = self._student(strong.images)
            labelled_features, labelled_logits = self._student(weak.images)
        else:
            labelled_features, labelled_logits = self._student(weak.images)
            strong_features, strong_logits = self._student(strong.images)

        supervised = cross_entropy(labelled_logits, weak.labels, class_weights)
        pseudo = ramp_up(step, config.ramp_up_steps) * self.pseudo_label_loss(
            strong_logits, strong, class_weights
        )
        entropy = entropy_loss(strong_logits, strong.labels != IGNORE, normalised=config.entropy_normalised)
        if config.contrast_weight > 0 and step >= config.start - config.memory_lead_steps:
            self.remember(weak)
        contrast, spread = torch.zeros_like(supervised), torch.zeros(2, device=supervised.device)
        if config.contrast_weight > 0 and step >= config.start:
            of_labelled, spread_labelled = self.contrast(labelled_features, weak.labels)
            of_strong, spread_strong = self.contrast(strong_features, strong.labels)
            contrast, spread = of_labelled + of_strong, (spread_labelled + spread_strong) / 2

        loss = (
            supervised
            + config.pseudo_weight * pseudo
            + config.entropy_weight * entropy
            + config.contrast_weight * contrast
        )
        logs = {"supervised": supervised, "pseudo": pseudo, "entropy": entropy, "contrast": contrast}
        seen = {
            "memory": self.memory.count.float().mean() / config.memory_size,
            "attention_prediction": spread[0],
            "attention_memory": spread[1],
            **judged(
                unlabelled.get(TRUTH),
                anchor.labels,
                anchor.weights**config.confidence_power,
                self.num_classes,
            ),
        }
        return loss, {**{name: log.detach() for name, log in logs.items()}, **seen}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student, "teacher": self.teacher}

    def after_step(self, step: int) -> None:
        config = self.config
        decay = teacher.decay(
            step, self.task.total_steps, base=config.teacher_decay, rate=config.teacher_rate
        )
        buffers = not config.teacher_training_mode
        teacher.follow(self.teacher, self.student, decay, buffers=buffers)
        teacher.follow(self.teacher_projection, self.projection, decay, buffers=buffers)
        ranking = self.memory_attention or self.prediction_attention
        if self.teacher_attention is not None and ranking is not None:
            teacher.follow(self.teacher_attention, ranking, decay, buffers=buffers)

    # --- images ---------------------------------------------------------------------------------------

    def weak_view(self, labelled: Labelled) -> Pixels:
        """Mix labelled crops, which the loader has scaled and flipped, and change their colours."""
        config = self.config
        pixels = Pixels(*labelled, (labelled.masks != IGNORE).float())
        pixels = self._mixed(pixels, config.mix_labelled)
        images = self._jittered(pixels.images, config.weak_jitter_probability, config.weak_jitter)
        return pixels._replace(images=images)

    def strong_view(self, anchor: Pixels, step: int) -> Pixels:
        """Draw one strong view of ``anchor``: ClassMix, scale, flip, colours and blur."""
        config = self.config
        pixels = self._mixed(anchor, config.mix_unlabelled if step >= config.start else 0.0)
        pixels = random_scale_crop(
            pixels, probability=config.strong_scale_probability, scale=config.strong_scale
        )
        pixels = random_flip(pixels, probability=config.strong_flip_probability)
        images = self._jittered(pixels.images, config.strong_jitter_probability, config.strong_jitter)
        images = gaussian_blur(
            images,
            probability=config.strong_blur_probability,
            sigma=config.strong_blur,
            by_axis=config.blur_by_axis,
        )
        return pixels._replace(images=images)

    def _mixed(self, pixels: Pixels, probability: float) -> Pixels:
        # The released code also pastes images of background or ignored pixels alone (trainSSL.py 283-291).
        return classmix(
            pixels,
            num_classes=self.num_classes,
            probability=probability,
            background=self.task.background,
            extra_classes=self.config.mix_extra_classes,
        )

    def _jittered(
        self, images: Tensor, probability: float, jitter: tuple[float, float, float, float]
    ) -> Tensor:
        brightness, contrast, saturation, hue = jitter
        return colour_jitter(
            images,
            probability=probability,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            additive=self.config.jitter_additive,
        )

    # --- networks -------------------------------------------------------------------------------------

    def _student(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's features, and logits (float32) at the images' size."""
        features = self.student.features(images)
        return features, self.student.logits(features, size_of(images))

    def _teacher(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoder's features, and the predicted class and its probability at the images' size."""
        features = self.teacher.features(images)
        logits = self.teacher.logits(features, size_of(images))
        confidence, labels = torch.softmax(logits, dim=1).max(dim=1)
        return features, labels, confidence

    def _set_teacher_mode(self) -> None:
        for network in (self.teacher, self.teacher_projection, self.teacher_attention):
            if network is not None:
                network.train(self.config.teacher_training_mode)

    # --- losses ---------------------------------------------------------------------------------------

    def pseudo_label_loss(self, logits: Tensor, pixels: Pixels, class_weights: Tensor | None) -> Tensor:
        """Return the cross-entropy weighted by confidence^k, a mean over all pixels; ignored ones add zero.

        The same as released (utils/loss.py 40-43). logits: (B, C, H, W) of the strong views; class_weights:
        (C,), None for ones.
        """
        losses = functional.cross_entropy(
            logits, pixels.labels, class_weights, ignore_index=IGNORE, reduction="none"
        )
        return (losses * pixels.weights.pow(self.config.confidence_power)).mean()

    @torch.no_grad()
    def remember(self, labelled: Pixels) -> None:
        """Put the teacher's projections of good labelled pixels into the memory (section 3.3).

        With the teacher in training mode a single good pixel is not remembered: batch norm would map it to
        its bias, whatever the pixel. (In the released code batch norm raises an error, trainSSL.py 629.) The
        memory is cut to its size at once, not when the next features of a class come
        (utils/feature_memory.py 61-66); only a budget of few labelled images exceeds it.
        """
        config = self.config
        features, predicted, confidence = self._teacher(labelled.images)
        size = size_of(features)
        labels = at_features(labelled.labels, size)
        good = labels != IGNORE
        if config.memory_filter:
            correct = at_features(predicted, size) == labels
            good = good & correct & (at_features(confidence, size) > config.memory_confidence)
        if config.teacher_training_mode:
            good = good & (distributed.summed(good.sum()) > 1)
        entering = torch.where(good, labels, IGNORE)
        projections = self.teacher_projection(rows_of(features), good)
        if config.memory_order == "random" or self.teacher_attention is None:
            scores = distributed.uniform(len(entering), device=entering.device)
        else:
            scores = self.teacher_attention(projections, entering)
            scores = -scores if config.memory_order == "lowest" else scores
        self.memory.add(
            distributed.gathered(projections),
            distributed.gathered(entering),
            distributed.gathered(scores),
            self.budget(distributed.size() * len(labelled.images)),
            rank_all=config.memory_rank_all,
        )

    def budget(self, images: int) -> int:
        """Return how many features of each class a step with so many labelled images may remember."""
        an_image = round(self.config.memory_size / self.task.labelled_images)
        if self.config.images_hold == "few":
            an_image = int(self.num_classes / 3 * an_image)
        return images * max(1, an_image)

    def contrast(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pull the student's predicted features towards the memory of their class (L_contr).

        features: (B, channels, h, w) of the decoder; labels: (B, H, W). Returns the loss, and how far the
        attention's weights spread on either side: (2,), prediction and memory.
        """
        labels = at_features(labels, size_of(features))
        counted = labels != IGNORE
        predictions = self.prediction(self.projection(rows_of(features), counted), counted)
        memory = distributed.dealt(self.memory.features.flatten(0, 1))
        memory_labels = distributed.dealt(self.memory.labels().flatten())
        # The attention learns to weigh features and must not move them. It reads them as they are, as when
        # they were ranked; the released code normalises them first (contrastive_losses.py 36, 48).
        scores = _scores(self.prediction_attention, predictions.detach(), labels)
        memory_scores = _scores(self.memory_attention, memory, memory_labels)
        loss = class_memory_loss(
            predictions,
            labels,
            memory,
            memory_labels,
            scores,
            memory_scores,
            self.num_classes,
            self.config.least_features,
        )
        spreads = (
            attention_spread(scores, labels, self.num_classes),
            attention_spread(memory_scores, memory_labels, self.num_classes),
        )
        return loss, torch.stack(spreads)

    @torch.no_grad()
    def class_weights(self, labels: Tensor, pseudo_labels: Tensor, step: int) -> Tensor | None:
        """Count the labels (B, H, W) of step ``step`` and return the classes' weights (C,).

        None until the ramp-up is over and every unlabelled image has been seen. The released code sums the
        counts of exactly one pass over the images (utils/class_balancing.py 60-71, 102-107; trainSSL.py
        391-394); here labels are a mean over the images seen, and pseudo-labels an exponential mean over
        about a pass, in two buffers of C numbers.
        """
        if not self.config.class_balance:
            return None
        one_pass = max(1, self.task.unlabelled_images // (distributed.size() * len(pseudo_labels)))
        self.label_frequencies.lerp_(_frequencies(labels, self.num_classes), 1 / (step + 1))
        self.pseudo_frequencies.lerp_(
            _frequencies(pseudo_labels, self.num_classes), 1 / min(step + 1, one_pass)
        )
        if step < max(self.config.start, one_pass):
            return None
        return median_frequency_weights(
            self.task.labelled_images * self.label_frequencies
            + self.task.unlabelled_images * self.pseudo_frequencies
        )


@torch.no_grad()
def attention_spread(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the standard deviation of a class's weights w = s / mean(s), a mean over the classes present.

    scores: (N,), the attention's, in (0, 1); labels: (N,) int, rows outside [0, num_classes) are ignored. A
    float32 scalar: zero if all features of a class weigh the same, as without attention, or there are none.
    """
    classes = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    scores = scores.double()  # squares in float32 would lose a spread below a thousandth
    rows = torch.stack((torch.ones_like(scores), scores, scores.square()))
    sums = rows.new_zeros(3, num_classes + 1).index_add_(1, classes, rows)[:, :num_classes]
    sums = distributed.summed(sums)
    count, mean, square = sums[0], *(sums[1:] / sums[0].clamp(min=1))
    variance = (square / mean.square().clamp(min=1e-12) - 1).clamp(min=0)
    return (torch.where(count > 0, variance.sqrt(), 0).sum() / (count > 0).sum().clamp(min=1)).float()


def _joined(one: Pixels, other: Pixels) -> Pixels:
    """Put the two views of an image side by side, so that processes' shares are blocks of the whole."""
    return Pixels(*(torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(one, other, strict=True)))


def _scores(attention: ClassAttention | None, rows: Tensor, labels: Tensor) -> Tensor:
    if attention is None:
        return torch.ones(len(rows), device=rows.device)
    scores: Tensor = attention(rows, labels)
    return scores


def _frequencies(labels: Tensor, num_classes: int) -> Tensor:
    """Return the pixels of each class in an image, a mean over labels (B, H, W): (C,) float32."""
    inside = (labels >= 0) & (labels < num_classes)
    counts = torch.zeros(num_classes + 1, device=labels.device)
    flat = torch.where(inside, labels, num_classes).flatten()
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))
    return distributed.averaged(counts[:-1] / len(labels))
