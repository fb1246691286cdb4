"""Validate a pretraining: classify pixels of the val list by their nearest labelled neighbours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from semiseg.base.errors import UserError
from semiseg.base.gpu_memory import enough_memory
from semiseg.base.labels import IGNORE
from semiseg.base.parameters import PretrainingConfig
from semiseg.data.geometry import resize_image
from semiseg.data.prepared import PreparedDataset
from semiseg.data.streams import evaluation_images
from semiseg.evaluation.metrics import confusion_matrix, mean_iou
from semiseg.evaluation.score import Image, evaluation_mode
from semiseg.models.network import Encoder

IMAGES = 32  # of the training list at most, evenly spread, that lend their masks
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' votes


@dataclass(frozen=True)
class Probe:
    """Votes of the nearest neighbours in the features of a backbone, as in Wu et al., CVPR 2018.

    Each position of the last map is a pixel with the class that the mask has at its centre. An image's
    long side is scaled to twice that of a crop.
    """

    dataset: PreparedDataset
    ids: tuple[str, ...]  # training images with a mask
    device: torch.device
    precision: str  # fp32, or bf16 (autocast)
    long_side: int  # pixels
    workers: int

    @classmethod
    def of(cls, config: PretrainingConfig, dataset: PreparedDataset, device: torch.device) -> "Probe":
        """Return the probe of a pretraining. Raises UserError if no training image has a mask."""
        masked, _ = dataset.by_mask()
        if not masked:
            raise UserError(
                f"{dataset.folder}: no training image has a mask, which the probe needs; add some"
            )
        recipe = config.recipe
        ids = masked[:: -(-len(masked) // IMAGES)]
        return cls(dataset, ids, device, recipe.precision, 2 * recipe.crop, recipe.workers)

    def count(self, networks: Mapping[str, Encoder], images: Iterable[Image]) -> dict[str, Tensor]:
        """Return each encoder's confusion matrix over the images' positions: (C, C) int64 on the CPU."""
        classes = len(self.dataset.classes)
        enough = enough_memory("the probe", "lower crop or set precision: bf16 in the pretraining")
        with enough, evaluation_mode(networks.values(), self.device, self.precision):
            labelled = list(evaluation_images(self.dataset, self.ids, self.workers))
            banks = {name: self._bank(network, labelled) for name, network in networks.items()}
            totals = dict.fromkeys(networks, torch.zeros(classes, classes, dtype=torch.int64))
            for _, image, mask in images:
                for name, network in networks.items():
                    features, labels = self._pixels(network, image, mask)
                    found = nearest(features, *banks[name], classes)
                    totals[name] = totals[name] + confusion_matrix(found, labels, classes).cpu()
        return totals

    def figures(self, matrix: Tensor) -> dict[str, float]:
        """Return the mean IoU, in [0, 1]."""
        return {"miou": float(mean_iou(matrix))}

    def _bank(self, network: Encoder, images: Iterable[Image]) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and labels (N,) of the labelled positions of ``images``."""
        pixels = [self._pixels(network, image, mask) for _, image, mask in images]
        features, labels = (torch.cat(each) for each in zip(*pixels, strict=True))
        if not (labels != IGNORE).any():
            raise UserError(
                f"{self.dataset.folder}: no position of the probe's masks has a class; label more pixels"
            )
        return features[labels != IGNORE], labels[labels != IGNORE]

    def _pixels(self, network: Encoder, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (P, D) of an image's positions, of norm one, and their labels (P,) int64."""
        scaled = resize_image(image.to(self.device), self.long_side).float().div_(255)[None]
        features = network.encode(scaled.contiguous(memory_format=torch.channels_last))[-1]
        labels = interpolate(mask.to(self.device)[None, None], features.shape[-2:], mode="nearest-exact")
        return normalize(features[0].flatten(1).T.float(), dim=1), labels.flatten().long()


def nearest(features: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the class of each row of features (P, D), which the nearest rows of ``bank`` (N, D) vote for.

    All rows have norm one. labels: (N,) int64. The votes of the 20 nearest weigh exp(cosine / 0.07).
    """
    with torch.autocast(features.device.type, enabled=False):
        cosines, rows = (features @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
    votes = torch.zeros(len(features), num_classes, device=features.device)
    return votes.scatter_add_(1, labels[rows], (cosines / TEMPERATURE).exp()).argmax(dim=1)
