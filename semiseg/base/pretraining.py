"""A pretraining as params.yaml declares it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semiseg.base import checks, paths
from semiseg.base.backbone import ChosenBackbone


@dataclass(frozen=True)
class PretrainingOptimiser:
    """SGD with momentum or LARS; a linear warm-up, then half a cosine down to zero."""

    name: str  # sgd or lars
    learning_rate: float  # the largest
    momentum: float
    weight_decay: float
    warmup_steps: int

    def __post_init__(self) -> None:
        checks.one_of(self, "name", "sgd", "lars")
        checks.positive(self, "learning_rate")
        checks.at_least(self, 0, "warmup_steps")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1)")


@dataclass(frozen=True)
class Pretraining(ChosenBackbone):
    """Self-supervised training of a backbone on a dataset's training list, without masks.

    Only the probe reads masks: those of the val list and of a few training images.
    """

    method: str  # a file of semiseg/pretraining/
    options: Mapping[str, Any]  # of the method's Config
    dataset: str
    backbone: str
    weights: str  # to start from: imagenet, coco, hub, none, or the path of a file
    output_stride: int
    crop: int  # pixels, the side of both views of an image
    area: tuple[float, float]  # of a view, as a share of the image
    batch: int  # images of a step, each in two views
    optimiser: PretrainingOptimiser
    steps: int
    seed: int
    precision: str  # fp32, or bf16 (autocast)
    validate_every: int  # steps between two probes
    checkpoint_minutes: float  # between two checkpoints; 0: one after every step
    log_every: int  # steps
    workers: int  # processes that read images
    threads: int  # CPU threads of one process; sums depend on it
    image_cache_mib: int  # memory for decoded images that the workers share; 0: keep none
    gpus: int  # that share each batch

    def __post_init__(self) -> None:
        self.check_backbone()
        if paths.PretrainingRun.named(self.weights):
            raise ValueError(
                f"weights: {self.weights}: a pretraining cannot start from another; give its file"
            )
        checks.within(self, 1, checks.MOST, "crop", "threads", "gpus")
        checks.within(self, 2, checks.MOST, "batch")  # batch norm needs two
        checks.within(self, 0, 1, "area")
        checks.positive(self, "area")
        checks.ascending(self, "area")
        checks.at_least(self, 1, "steps", "validate_every", "log_every")
        checks.within(self, 0, checks.SEEDS - 1, "seed")
        checks.within(self, 0, checks.MOST, "workers")
        checks.at_least(self, 0, "checkpoint_minutes", "image_cache_mib")
        checks.one_of(self, "precision", "fp32", "bf16")
        if self.crop % self.output_stride:
            raise ValueError(
                f"crop: {self.crop} is no multiple of the output stride of {self.output_stride} pixels"
            )
        if self.batch % self.gpus:
            raise ValueError(
                f"gpus: {self.gpus} cannot share the batch of {self.batch} evenly; give a divisor of it"
            )
        if self.optimiser.warmup_steps >= self.steps:
            raise ValueError(
                f"optimiser: warmup_steps: {self.optimiser.warmup_steps} are not fewer than the steps"
            )
