"""The features of earlier steps."""

from typing import Any

import torch
from torch import Tensor, nn


class FeatureBank(nn.Module):
    """All features of the last ``steps`` steps with their labels, the newest step first.

    A step's number of rows is known when the first step is added, and is the same from then on; loading a
    state takes over its shapes. Nothing is copied to the host.
    """

    features: Tensor  # (steps, rows, dim) float32
    labels: Tensor  # (steps, rows) int64
    held: Tensor  # () int64, steps that are filled

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(steps, 0, dim))
        self.register_buffer("labels", torch.zeros(steps, 0, dtype=torch.int64))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Put a step's rows (rows, dim) and their labels (rows,) before the others and drop the oldest step.

        Raises ValueError when the number of rows is not that of the first step.
        """
        steps, rows, dim = self.features.shape
        if rows == 0:
            self.features = features.new_zeros(steps, len(features), dim, dtype=torch.float32)
            self.labels = labels.new_zeros(steps, len(labels))
        elif len(features) != rows:
            raise ValueError(f"features: {len(features)} rows, the steps before had {rows}")
        self.features = torch.cat((features[None].float(), self.features[:-1]))
        self.labels = torch.cat((labels[None], self.labels[:-1]))
        self.held.add_(1).clamp_(max=steps)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (steps rows, dim), labels (steps rows,), and valid, False where no step is."""
        steps, rows, _ = self.features.shape
        filled = torch.arange(steps, device=self.held.device) < self.held
        return self.features.flatten(0, 1), self.labels.flatten(), filled.repeat_interleave(rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("features", "labels"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                own = getattr(self, name)
                setattr(self, name, own.new_zeros(len(own), saved.shape[1], *own.shape[2:]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
