"""Pretrainings in miniature, and what their tests share."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semiseg.base import parameters
from semiseg.base.parameters import PretrainingConfig
from semiseg.base.pretraining import Pretraining
from semiseg.base.tree import from_tree
from semiseg.data.views import resized_crops
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.contract import Method, Task
from tests import miniature
from tests.tiny import TinyBackbone

METHODS = parameters.files_of("pretraining")
STEPS = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {"queue": 4, "groups": 2},
    "byol": {"momentum": 0.9},
    "densecl": {"queue": 4, "groups": 2, "grid": 2},
    "pixpro": {"grid": 2},
}
RECIPE: dict[str, Any] = {
    "dataset": "mini",
    "backbone": miniature.BACKBONE,
    "weights": "none",
    "output_stride": 16,
    "crop": 32,
    "area": [0.3, 1.0],
    "batch": 4,
    "optimiser": {
        "name": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_steps": 2,
    },
    "steps": STEPS,
    "seed": 0,
    "precision": "fp32",
    "validate_every": 3,
    "checkpoint_minutes": 0,
    "log_every": 2,
    "workers": 0,
    "threads": 1,
    "image_cache_mib": 0,
    "gpus": 1,
}


def tree(method: str, **changes: Any) -> dict[str, Any]:
    """Return an entry of params.yaml's pretraining, with small heads and other values of some fields."""
    options = {"hidden": 8, "dim": 6, **OPTIONS[method], **changes.pop("options", {})}
    return {**RECIPE, "method": method, "options": options, **changes}


def recipe(method: str, **changes: Any) -> Pretraining:
    """Return the recipe of ``tree``."""
    found: Pretraining = from_tree(Pretraining, tree(method, **changes), "recipe")
    return found


def config(method: str, **changes: Any) -> PretrainingConfig:
    """Return the configuration of a pretraining in the miniature project, the working directory."""
    params = dataclasses.replace(parameters.load(), pretraining={method: recipe(method, **changes)})
    return params.pretraining_config(method)


PLAIN = {"jitter_probability": 0, "grey_probability": 0, "blur_probability": 0}


def plain(method: str, **options: Any) -> Any:
    """Return a method in evaluation mode that changes no colours: a view's features are its own."""
    return learner(method, options={"first": PLAIN, "second": PLAIN, **options}).eval()


def unit(row: Tensor) -> NDArray[np.float64]:
    """Return a row of norm one, as numpy has it."""
    values = row.detach().double().numpy()
    return np.asarray(values / np.sqrt((values**2).sum()))


def encoder() -> Encoder:
    """Return an encoder of one convolution, at a stride of 16 pixels."""
    return Encoder(TinyBackbone(8, 16))


def learner(method: str, **changes: Any) -> Method:
    """Return a method on ``encoder``, always with the same weights."""
    torch.manual_seed(0)
    options = contract.configured(recipe(method, **changes))
    return contract.build(method, encoder, options, Task(STEPS)).train()


def views(images: int = 4, size: tuple[int, int] = (40, 48), seed: int = 1) -> dict[str, Tensor]:
    """Return a batch of views of noise, as a step gets it."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(256, (images, 3, *size), dtype=torch.uint8, generator=generator)
    drawn = [resized_crops(image, generator, crop=32, area=(0.3, 1.0)) for image in raw]
    batch = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
    return {name: each.float() / 255 if each.dtype == torch.uint8 else each for name, each in batch.items()}
