"""SimCLR: two views of an image agree, and differ from all other views of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
"""

from dataclasses import dataclass

from torch import Tensor

from semiseg.base import checks
from semiseg.losses import nt_xent_loss
from semiseg.methods.common import Colours, apart, together
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.common import Branch, coloured, head, spread
from semiseg.pretraining.contract import Build, Logs, Task, Views

REVISION = 1  # raise it when a change alters the pretrained weights

VIEW = Colours(jitter=(0.8, 0.8, 0.8, 0.2))


@dataclass(frozen=True)
class Config(contract.Config):
    """SimCLR's hyper-parameters."""

    first: Colours = VIEW
    second: Colours = VIEW
    temperature: float = 0.1
    hidden: int = 2048  # channels of the head
    dim: int = 128  # of the compared features

    def __post_init__(self) -> None:
        checks.positive(self, "temperature")
        checks.within(self, 1, checks.MOST, "hidden", "dim")


class Method(contract.Method):
    """One encoder and its head; batch norm sees both views of all images together."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config, encoder = config, build()
        projector = head(encoder.backbone.channels[-1], config.hidden, config.dim, last_norm=True)
        self.online = Branch(encoder, projector)

    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Contrast the views of the whole batch."""
        images = coloured(views, self.config)
        features = self.online(together(*images)).flatten(1)
        first, second = apart(features, len(images[0]), len(images[1]))
        return nt_xent_loss(first, second, temperature=self.config.temperature), {"spread": spread(first)}

    def encoder(self) -> Encoder:
        return self.online.encoder
