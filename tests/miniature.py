"""A project of a few small drawn images, in a folder of its own, that trains in seconds."""

from pathlib import Path

import torch
import yaml

from semiseg.base import parameters
from semiseg.data import prepared, sources, splits
from semiseg.methods import contract
from semiseg.methods.contract import Method, Task
from tests.tiny import tiny_network

PIPELINE = Path(__file__).parent.parent / "pipeline"
STEPS = 6
METHODS = sorted(
    file.stem for file in Path(contract.__file__).with_name("methods").glob("*.py") if file.stem != "__init__"
)

PARAMS = {
    "datasets": {
        "mini": {
            "source": "shapes",
            "classes": ["background", "disc", "square"],
            "background": 0,
            "options": {"train": 8, "val": 2, "size": 48},
        }
    },
    "protocols": {
        "mini": {
            "network": {
                "head": "deeplabv3plus",
                "backbone": "resnet18",
                "weights": "none",
                "decoder_channels": 8,
            },
            "geometry": {"base_size": 48, "scale": [0.75, 1.5], "crop": 32},
            "optimiser": {"learning_rate": 0.01, "clip_norm": 5.0},
            "labelled_batch": 2,
            "unlabelled_batch": 2,
            "steps": STEPS,
            "validate_every": 3,
            "checkpoint_every": 2,
            "log_every": 2,
            "workers": 0,
            "methods": {
                "cmb": {
                    "ramp_up_steps": 2,
                    "memory_lead_steps": 1,
                    "memory_size": 8,
                    "memory_confidence": 0.2,
                }
            },
        }
    },
    "splits": {"mini-1_4": {"dataset": "mini", "protocol": "mini", "ratio": "1/4"}},
    "recipes": {name: {"method": name} for name in METHODS},
    "grids": {
        "mini": {
            "title": "Miniature",
            "recipes": METHODS,
            "splits": ["mini-1_4"],
            "seeds": [0],
        }
    },
}


def create(folder: Path) -> None:
    """Write params.yaml, the dataset and the split of seed 0 into ``folder``, the working directory."""
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    params = parameters.load()
    dataset = params.datasets["mini"]
    sources.prepare("mini", dataset)
    ids = prepared.open_dataset("mini", dataset).ids("train")
    splits.write("mini-1_4", 0, ids, params.splits["mini-1_4"].labelled_count(len(ids)), "mini")


def learner(name: str) -> Method:
    """The method ``name`` with its defaults around a tiny network of three classes."""
    torch.manual_seed(0)
    return contract.build(name, tiny_network(3), contract.module(name).Config(), Task(10, 2, 0, 6))
