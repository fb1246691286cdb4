"""DPT (Ranftl, Bochkovskiy and Koltun, ICCV 2021): a decoder for the four maps of a vision transformer."""

from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.base.errors import UserError
from semiseg.models.network import Backbone, Maps, SegmentationNetwork

FINER = 8  # positions of the features along the side of a patch


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return DPT; features are (B, channels, 8 H/p, 8 W/p) for patches of p pixels.

    Without batch norm, as in the code released with UniMatch V2 (model/semseg/dpt.py, model/util/blocks.py),
    whose width is 64 for a small and 128 for a base transformer. Raises UserError for a backbone without four
    maps.
    """
    if len(backbone.channels) != 4:
        raise UserError(
            "network: head: dpt decodes a vision transformer, such as timm:vit_small_patch14_dinov2"
        )
    return SegmentationNetwork(
        backbone,
        Decoder(backbone, channels),
        nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, num_classes, 1)
        ),
        num_classes=num_classes,
        feature_channels=channels,
        feature_stride=backbone.output_stride / FINER,
        align_corners=True,
    )


class Decoder(nn.Module):
    """Bring the maps to 4, 2, 1 and 1/2 positions a patch, and fuse them from the coarsest to the finest."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        widths = [inputs // divisor for inputs, divisor in zip(backbone.channels, (8, 4, 2, 1), strict=True)]
        pairs = zip(backbone.channels, widths, strict=True)
        self.project = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs, width in pairs)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.narrow = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.refine_skipped = nn.ModuleList(Residual(channels) for _ in range(3))
        self.refine = nn.ModuleList(Residual(channels) for _ in range(4))
        self.mix = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, maps: Maps) -> Tensor:
        stages = zip(maps, self.project, self.resize, self.narrow, strict=True)
        levels = [narrow(resize(project(each))) for each, project, resize, narrow in stages]
        sizes = [tuple(2 * length for length in levels[0].shape[-2:]), *(each.shape[-2:] for each in levels)]
        fused = levels[3]
        for level in (3, 2, 1, 0):
            if level < 3:
                fused = fused + self.refine_skipped[level](levels[level])
            fused = self.refine[level](fused)
            fused = interpolate(fused, sizes[level], mode="bilinear", align_corners=True)
            fused = self.mix[level](fused)
        return fused


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, values: Tensor) -> Tensor:
        refined: Tensor = values + self.layers(values)
        return refined
