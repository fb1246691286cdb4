"""LARS, the optimiser of large batches (You, Gitman and Ginsburg, 2017)."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose steps are in proportion to each weight's norm.

    The gradient with weight decay, g + β w, is scaled by ``trust`` ‖w‖ / ‖g + β w‖. Biases and the parameters
    of norms, which have one dimension, take neither decay nor scale (Chen et al., ICML 2020; Grill et al.,
    NeurIPS 2020). The rate scales the velocity, as in torch's SGD; in the paper it is summed in it.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step. Nothing waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        change = weight.grad
        if weight.ndim > 1:
            change = change.add(weight, alpha=group["weight_decay"])
            norm, change_norm = weight.norm(), change.norm()
            scale = torch.where((norm > 0) & (change_norm > 0), group["trust"] * norm / change_norm, 1)
            change = change * scale
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity = state["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(change)
        weight.add_(velocity, alpha=-group["lr"])
