"""Parts that several self-supervised methods share: views, heads, shuffled batches, queues."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from semiseg.base import distributed
from semiseg.base.pretraining import Pretraining
from semiseg.methods.common import Colours, strong_view
from semiseg.models import synchronised
from semiseg.models.network import Encoder
from semiseg.pretraining.contract import Config, Views

# BYOL's two views, which PixPro takes over
BLURRED = Colours(jitter=(0.4, 0.4, 0.2, 0.1), blur_probability=1.0)
SOLARISED = Colours(jitter=(0.4, 0.4, 0.2, 0.1), blur_probability=0.1, solarise_probability=0.2)


def coloured(views: Views, config: Config) -> tuple[Tensor, Tensor]:
    """Return both views of the images, (B, 3, H, W) in [0, 1], in other colours."""
    return strong_view(views["image1"], config.first), strong_view(views["image2"], config.second)


def head(
    channels: int, hidden: int, dim: int, *, norm: bool = True, last_norm: bool = False
) -> nn.Sequential:
    """Return a head of 1x1 convolutions: maps (B, channels, h, w) -> (B, dim, h, w), ``hidden`` in between.

    ``norm`` puts batch norm before the ReLU, ``last_norm`` at the end.
    """
    first, last = nn.Conv2d(channels, hidden, 1, bias=not norm), nn.Conv2d(hidden, dim, 1, bias=not last_norm)
    layers = [first, *([nn.BatchNorm2d(hidden)] if norm else []), nn.ReLU(), last]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(dim)] if last_norm else []))


class Branch(nn.Module):
    """An encoder with a head on its features: images (B, 3, H, W) -> (B, dim, grid, grid)."""

    def __init__(self, encoder: Encoder, head: nn.Module, grid: int = 1) -> None:
        super().__init__()
        self.encoder, self.head, self.grid = encoder, head, grid

    def forward(self, images: Tensor) -> Tensor:
        features = adaptive_avg_pool2d(self.encoder.encode(images)[-1], self.grid)
        projected: Tensor = self.head(features)
        return projected


def spread(features: Tensor) -> Tensor:
    """Return the mean standard deviation of features (B, D) of norm one, times √D, for the logs.

    About one for features in all directions, and zero once all images have the same.
    """
    unit = normalize(features.detach().double(), dim=1)  # float32 would show a collapse as 1e-4
    mean = distributed.averaged(unit.mean(dim=0))
    square = distributed.averaged(unit.square().mean(dim=0))
    return ((square - mean.square()).clamp(min=0).sqrt().mean() * features.shape[1] ** 0.5).float()


def check_grid(grid: int, recipe: Pretraining) -> None:
    """Raise ValueError if the features of a crop are coarser than a grid of ``grid`` x ``grid`` cells."""
    positions = recipe.crop // recipe.output_stride
    if grid > positions:
        raise ValueError(
            f"grid: {grid} cells a side are more than the {positions} positions of a crop of {recipe.crop} "
            f"pixels at output stride {recipe.output_stride}; lower grid or raise crop"
        )


# --- a momentum encoder with a queue ------------------------------------------------------------------------


def check_groups(groups: int, recipe: Pretraining) -> None:
    """Raise ValueError if ``groups`` cannot share a batch, or the processes cannot share the groups."""
    if recipe.batch % groups or recipe.batch // groups < 2:
        raise ValueError(
            f"groups: {groups} of a batch of {recipe.batch} are unequal, or hold fewer than two images"
        )
    if groups % recipe.gpus:
        raise ValueError(f"groups: {groups} cannot be shared out evenly among {recipe.gpus} GPUs")


def split_norm(module: nn.Module, groups: int) -> None:
    """Let batch norm see one of ``groups`` parts of the whole batch at a time."""
    synchronised.split(module, groups // distributed.size())


def shuffled(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's block of the whole batch (N, ...) in a random order, and the order (N,) int64."""
    every = distributed.gathered(images)
    order = torch.rand(len(every), device=images.device).argsort()
    return distributed.own(every[order]), order


def restored(rows: Tensor, order: Tensor) -> Tensor:
    """Undo ``shuffled`` for rows that were computed from the images."""
    return distributed.own(distributed.gathered(rows)[order.argsort()])


class Queue(nn.Module):
    """The keys of the latest images, the newest first: ``keys`` (size, dim) float32 of norm one.

    Random keys fill it at first, as in MoCo's release.
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(size, dim)))

    @torch.no_grad()
    def add(self, keys: Tensor) -> None:
        """Put the keys (B, dim) of all processes before the others and drop the oldest."""
        new = distributed.gathered(normalize(keys.float()))
        self.keys = torch.cat((new, self.keys))[: len(self.keys)]
