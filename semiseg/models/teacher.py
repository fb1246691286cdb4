"""A teacher: a copy of modules that is their moving average."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Return a copy whose parameters take no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


def decay(step: int, total_steps: int, *, base: float = 0.995, rate: float = 1.0) -> float:
    """Return the weight of the old teacher after step ``step`` (from 0) of ``total_steps``.

    It grows from ``base`` to 1 along a half cosine, 1 − (1 − base) (cos(π step / total) + 1) / 2, and never
    exceeds the true average's 1 − 1 / (rate · step + 1).
    """
    return min(1 - 1 / (rate * step + 1), cosine_decay(step, total_steps, base))


def cosine_decay(step: int, total_steps: int, base: float) -> float:
    """Return 1 − (1 − base) (cos(π step / total) + 1) / 2 (Grill et al., NeurIPS 2020)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2


def true_average_decay(step: int, base: float) -> float:
    """Return the weight of the old teacher after step ``step`` (from 0): ``base``, less at first.

    Until 1 − 1 / (step + 1) exceeds ``base`` the teacher is the true average of the students so far
    (Tarvainen and Valpola, NeurIPS 2017).
    """
    return min(1 - 1 / (step + 1), base)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool = True) -> None:
    """Set teacher ← decay · teacher + (1 − decay) · student; also of floating-point buffers if ``buffers``.

    Other buffers, such as counters, are copied.
    """
    old, new = list(teacher.parameters()), list(student.parameters())
    if buffers:
        for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
            if ours.is_floating_point():
                old.append(ours)  # type: ignore[arg-type]
                new.append(theirs)  # type: ignore[arg-type]
            else:
                ours.copy_(theirs)
    get_ema_multi_avg_fn(decay)(old, new, None)
