"""CCT: cross-consistency training.

Ouali, Hudelot, Tami: Semi-Supervised Semantic Segmentation with Cross-Consistency Training, CVPR 2020.
"Released code" is github.com/yassouali/CCT at 65d4e5bd; docs/deviations.md lists where it differs from the
paper.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from semiseg.base import checks
from semiseg.base.distributed import uniform
from semiseg.base.parameters import Geometry
from semiseg.losses import bootstrapped_cross_entropy, cross_consistency_loss, cross_entropy
from semiseg.losses.bootstrapped import bootstrap_threshold
from semiseg.methods import contract
from semiseg.methods.common import ramp_up, weak_view
from semiseg.methods.contract import IGNORE, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models.auxiliary_decoders import AuxiliaryDecoders
from semiseg.models.network import SegmentationNetwork, size_of, upsample
from semiseg.models.perturbations import (
    adversarial,
    channel_dropout,
    connected_regions,
    feature_drop,
    feature_noise,
    guided_cutout,
    masked,
)

REVISION = 1  # raise it when a change alters the numbers of a run


MASKS = ("context_mask", "object_mask")
FAMILIES = ("vat", "noise", "drop", "dropout", "cutout", *MASKS)
"""The perturbations, in the order of their decoders."""


@dataclass(frozen=True)
class Config(contract.Config):
    """CCT's hyper-parameters.

    Defaults follow the paper. "Released:" names a value of the released code that differs; the recipe
    ``cct-official`` sets all of these. Lines without a file are those of models/decoders.py.
    """

    by_parts: ClassVar[bool] = True

    # total loss: L_s + ω_u L_u, where ω_u rises to its weight as exp(−5 (1 − t)²) in a share of the run
    # (configs/config.json 7-8; utils/ramps.py 3-8)
    weight: float = 30.0
    ramp_up_share: float = 0.1
    # supervised loss: cross-entropy (configs/config.json 20), or annealed bootstrapped cross-entropy (cct-ab)
    bootstrapped: bool = False
    # Its threshold η rises from 1 / C by 1 − exp(−5 t) over a share of the run (utils/losses.py 186-196).
    bootstrap_final: float = 0.9
    bootstrap_share: float = 0.4
    # Pixels that its mean runs over: all labelled ones, or those that are kept. Released: kept
    # (utils/losses.py 219-222).
    bootstrap_mean: str = "labelled"
    # Auxiliary decoders of each perturbation. Paper: several of every one. Released: 6, masks and VAT 2, 30
    # in all (configs/config.json 29-45). Two of each, 14 in all, are the 12 of TorchSemiSeg at 5e0c29c0,
    # which builds none of VAT (its network.py 54-70), and two of VAT.
    noise: int = 2
    drop: int = 2
    dropout: int = 2
    cutout: int = 2
    context_mask: int = 2  # the masks need a dataset with a background class; else they are off
    object_mask: int = 2
    vat: int = 2
    # 1 x 1 convolution alone (convolution), as in TorchSemiSeg (unsupervised_head.py 58-66), or followed by
    # sub-pixel convolutions up to the image's size. Paper and released: subpixel (45-53).
    decoder: str = "convolution"
    # perturbations
    # Noise N and threshold γ are as large as z: each image's own, or the batch's. Released: batch (85, 103).
    draws: str = "image"
    noise_range: float = 0.3  # N ~ U(−0.3, 0.3) (configs/config.json 30-45, as the three below)
    drop_range: tuple[float, float] = (0.6, 0.9)  # γ ~ U(drop_range). Released: 0.7 to 0.9 (85)
    dropout_rate: float = 0.5  # share of channels
    cutout_share: float = 0.4  # share of an object's height and width
    # An object is a connected region of one class, or of any class but background. Released: any (165,
    # 176-183).
    cutout_objects: str = "class"
    vat_radius: float = 2.0  # ε

    def __post_init__(self) -> None:
        checks.at_least(self, 0, "weight", "vat_radius", *FAMILIES)
        checks.within(self, 0, 1, "ramp_up_share", "bootstrap_share", "noise_range", "cutout_share")
        checks.within(self, 0, 1, "drop_range", "bootstrap_final")
        checks.positive(self, "bootstrap_final")
        checks.ascending(self, "drop_range")
        checks.one_of(self, "bootstrap_mean", "labelled", "kept")
        checks.one_of(self, "decoder", "convolution", "subpixel")
        checks.one_of(self, "draws", "image", "batch")
        checks.one_of(self, "cutout_objects", "class", "any")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate: {self.dropout_rate} is outside [0, 1)")
        if not any(getattr(self, family) for family in FAMILIES):
            raise ValueError(f"one of {', '.join(FAMILIES)} needs a decoder")

    def check_network(self, network: SegmentationNetwork, background: int | None) -> None:
        """Refuse masks alone without a background class, and a size that doubling does not reach."""
        if not sum(self.decoders(background).values()):
            raise ValueError(
                "context_mask and object_mask need a background class, which the dataset does not have; give "
                f"decoders of {', '.join(family for family in FAMILIES if family not in MASKS)}"
            )
        if self.decoder == "subpixel" and not math.log2(network.feature_stride).is_integer():
            raise ValueError(
                f"decoder: subpixel needs features a power of two apart, not {network.feature_stride:g}"
            )

    def decoders(self, background: int | None) -> dict[str, int]:
        """Return the number of each family's decoders."""
        return {
            family: 0 if background is None and family in MASKS else getattr(self, family)
            for family in FAMILIES
        }


def views(config: Config, geometry: Geometry) -> View:
    """Return the weak view of an unlabelled image; see semiseg.methods.common.weak_view."""
    return weak_view(geometry)


class Method(contract.Method):
    """A network, whose classifier is the main decoder g, and auxiliary decoders of perturbed features.

    The released code has a ResNet with a pyramid as encoder and a sub-pixel main decoder (models/encoder.py
    41-62, models/model.py 55-61); here they are the protocol's network, the same for every method.
    """

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        self.config, self.task = config, task
        self.count = config.decoders(task.background)
        network = self.student
        doublings = int(math.log2(network.feature_stride)) if config.decoder == "subpixel" else 0
        self.auxiliary = AuxiliaryDecoders(
            sum(self.count.values()), network.feature_channels, network.num_classes, doublings
        )

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the supervised loss + w(t) x the auxiliary decoders' consistency, and both parts.

        ``unlabelled`` holds image (B, 3, H, W). Logs: supervised, consistency (before its weight).
        """
        assert unlabelled is not None
        config = self.config
        supervised = self._supervised_loss(self.student(labelled.images), labelled.masks, step)

        # The encoder learns from both losses, the main decoder from labelled images only.
        features = self.student.features(unlabelled["image"])
        with torch.no_grad():
            main = self.student.classify(features)
        logits = self.auxiliary(self._perturbed(features, main))
        target = torch.softmax(upsample(main, size_of(logits), self.student.align_corners), dim=1)
        consistency = cross_consistency_loss(logits, target)

        weight = config.weight * ramp_up(step, round(config.ramp_up_share * self.task.total_steps))
        loss = supervised + weight * consistency
        return loss, {"supervised": supervised.detach(), "consistency": consistency.detach()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student}

    def _supervised_loss(self, logits: Tensor, masks: Tensor, step: int) -> Tensor:
        config = self.config
        if not config.bootstrapped:
            return cross_entropy(logits, masks)
        steps = config.bootstrap_share * self.task.total_steps
        threshold = bootstrap_threshold(step, steps, self.student.num_classes, config.bootstrap_final)
        return bootstrapped_cross_entropy(logits, masks, threshold, mean_over=config.bootstrap_mean)

    def _perturbed(self, features: Tensor, main: Tensor) -> Tensor:
        """Perturb features (B, D, h, w) for every decoder, by family: (B, K, D, h, w)."""
        config, count = self.config, self.count
        batch, channels, height, width = features.shape
        of_batch = config.draws == "batch"

        def draw(*shape: int, shared: bool = False) -> Tensor:
            if shared:
                return torch.rand(1, *shape, device=features.device)
            return uniform(batch, *shape, device=features.device)

        perturbed = []
        if count["vat"]:
            first = slice(count["vat"])
            draws = draw(count["vat"], channels, height, width)
            decode = partial(self.auxiliary, which=first)
            perturbed.append(features[:, None] + adversarial(features, draws, decode, config.vat_radius))
        if count["noise"]:
            draws = draw(count["noise"], channels, height, width, shared=of_batch)
            perturbed.append(feature_noise(features, config.noise_range * (2 * draws - 1)))
        if count["drop"]:
            least, largest = config.drop_range
            draws = draw(count["drop"], shared=of_batch)
            perturbed.append(feature_drop(features, least + (largest - least) * draws))
        if count["dropout"]:
            draws = draw(count["dropout"], channels)
            perturbed.append(channel_dropout(features, draws, config.dropout_rate))

        predicted = interpolate(main.argmax(dim=1, keepdim=True).float(), (height, width))[:, 0].long()
        background = -1 if self.task.background is None else self.task.background
        foreground = predicted != background
        if count["cutout"]:
            labels = predicted if config.cutout_objects == "class" else torch.zeros_like(predicted)
            objects = connected_regions(torch.where(foreground, labels, IGNORE), IGNORE)
            draws = draw(count["cutout"], height * width, 2)
            perturbed.append(guided_cutout(features, objects, draws, config.cutout_share))
        if count["context_mask"]:
            perturbed.append(masked(features, foreground[:, None].expand(-1, count["context_mask"], -1, -1)))
        if count["object_mask"]:
            perturbed.append(masked(features, ~foreground[:, None].expand(-1, count["object_mask"], -1, -1)))
        return torch.cat(perturbed, dim=1)
