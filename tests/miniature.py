"""A project of a few small generated images, in a folder of its own, that trains in seconds."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml

from semiseg.base import parameters
from semiseg.base.parameters import RunConfig
from semiseg.base.paths import Run
from semiseg.data import prepared, sources, splits
from semiseg.evaluation.score import Scoring
from semiseg.methods import contract
from semiseg.methods.contract import Method, Task
from semiseg.training import checkpoint, loop
from tests.methods import many_decoders, two_networks
from tests.tiny import tiny_network

PIPELINE = Path(__file__).parents[1] / "pipeline"
METHODS = parameters.files_of("methods")
WRITTEN = {"many_decoders": many_decoders, "two_networks": two_networks}  # for the tests
STEPS = 6
SPLIT = "mini-1_4"
CPU = torch.device("cpu")

# Options that let a method reach its last phase within STEPS steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "cmb": {"ramp_up_steps": 2, "memory_lead_steps": 1, "memory_size": 8, "memory_confidence": 0.2},
    "dcc": {"start_share": 0.0, "threshold": 0.3},
    "cct": {"ramp_up_share": 0.5, "bootstrapped": True},
    "cps": {"cutmix": {"probability": 1, "area": [0.25, 0.5], "aspect": None, "boxes": 3}},
    "fixmatch": {"threshold": 0.35, "strong_views": 2, "feature_weight": 0.5},
    "pixel_contrast": {"max_views": 4, "dim": 8},
    "u2pl": {"anchors": 8, "negatives": 4, "dim": 8, "bank_size": 40, "bank_step": 16, "low_rank": 1},
    "mean_teacher": {"colours": {}, "cutmix": {"probability": 1, "area": [0.5, 0.5], "aspect": None}},
}
BACKBONE = "timm:test_resnet"  # of 0.4 million weights
PROTOCOL: dict[str, Any] = {
    "dataset": "mini",
    "network": {
        "head": "deeplabv3plus",
        "backbone": BACKBONE,
        "weights": "none",
        "output_stride": 16,
        "decoder_channels": 8,
    },
    "geometry": {"base_size": 48, "scale": [0.75, 1.5], "crop": 32},
    "optimiser": {
        "name": "sgd",
        "learning_rate": 0.01,
        "backbone_factor": 0.1,
        "head_factor": 1.0,
        "layer_decay": 1.0,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "power": 0.9,
        "clip_norm": 5.0,
    },
    "evaluation": {
        "long_side": None,
        "window": None,
        "stride": None,
        "flip": False,
        "recalibrate": None,
    },
    "labelled_batch": 2,
    "unlabelled_batch": 2,
    "accumulate": 1,
    "checkpoint_activations": False,
    "steps": STEPS,
    "precision": "fp32",
    "compile": False,
    "validate_every": 3,
    "checkpoint_minutes": 0,
    "log_every": 2,
    "judge_pseudo_labels": False,
    "workers": 0,
    "threads": 1,
    "image_cache_mib": 0,
    "methods": OPTIONS,
}
PARAMS: dict[str, Any] = {
    "default": ["mini"],
    "grids": {
        "mini": {
            "title": "Miniature",
            "protocol": "mini",
            "shares": ["1/4"],
            "recipes": METHODS,
            "seeds": [0],
        }
    },
    "recipes": {name: {} for name in METHODS},
    "protocols": {"mini": PROTOCOL},
    "datasets": {
        "mini": {
            "source": "shapes",
            "classes": ["background", "disc", "square"],
            "background": 0,
            "options": {"train": 8, "val": 2, "size": 48},
            "shares": {"1/4": {}},
        }
    },
}


def run(recipe: str, seed: int = 0) -> Run:
    """Return a run of the miniature grid."""
    return Run(recipe, SPLIT, seed)


def create(folder: Path) -> None:
    """Write params.yaml, the dataset and the lists of seed 0 into ``folder``, the working directory."""
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    params = parameters.load()
    dataset = params.datasets["mini"]
    sources.prepare("mini", dataset)
    ids = prepared.open_dataset("mini", dataset).ids("train")
    splits.write(SPLIT, 0, ids, params.share(SPLIT).labelled_count(len(ids)), "mini")


def config(recipe: str = "supervised", **protocol: Any) -> RunConfig:
    """Return the configuration of seed 0 in the working directory, with other values in its protocol."""
    plain = parameters.load().run(run(recipe))
    return dataclasses.replace(plain, protocol=dataclasses.replace(plain.protocol, **protocol))


def fit(config: RunConfig, device: torch.device = CPU) -> None:
    """Train a run to its end in this process, alone or together with others."""
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    split = splits.read(config.run.split, config.run.seed)
    loop.train(config, dataset, split, device, Scoring.of(config, device))


def train(config: RunConfig, device: torch.device = CPU) -> dict[str, Any]:
    """Train a run to its end in this process, and return what its model.pt holds."""
    fit(config, device)
    return checkpoint.read(config.run.artefacts / "model.pt")


def learner(name: str) -> Method:
    """Return the method ``name`` with its defaults on tiny networks of three classes."""
    torch.manual_seed(0)
    config = contract.module(name).Config()
    return contract.build(name, lambda: tiny_network(3), config, Task(10, 2, 0, 6))
