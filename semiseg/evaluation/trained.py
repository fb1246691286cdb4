"""Trained networks, from the file model.pt of a run, as they are scored."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import Images, labelled_batches
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint
from semiseg.training.batches import on_device
from semiseg.training.step import enough_memory_for_a_step, seed_everything

State = Mapping[str, Tensor]
"""A network's state dict."""


def read(path: Path, remedy: str = "remove it, train again") -> dict[str, Any]:
    """Return what training wrote to ``path``.

    Raises UserError for any other file and, with the ``remedy``, for one that is broken.
    """
    if not path.exists():
        raise UserError(f"{path}: not there; train the run first")
    try:
        model = checkpoint.read(path)
    except ValueError as error:
        raise UserError(f"{path}: not readable ({error}); {remedy}") from error
    if not isinstance(model, dict) or not model.get("last"):
        raise UserError(f"{path}: not a model.pt that training wrote; give another file")
    return model


def state(config: RunConfig, weights: Path | None = None, name: str | None = None) -> State:
    """Return the state of the network ``name`` at the last step; by default of the headline network.

    It is read from the run's model.pt, whose configuration must be ``config``, or from the file ``weights``
    of any other run. Raises UserError for a file that cannot be used and a name that it does not have.
    """
    path = weights or config.run.artefacts / "model.pt"
    model = read(path) if weights is None else read(path, "give another file")
    if weights is None and model.get("config_sha256") != config.digest():
        raise UserError(
            f"{path}: trained with another configuration in params.yaml; train the run again, or name the "
            f"file on purpose: --weights {path}"
        )
    networks = model["last"]
    if name is not None and name not in networks:
        raise UserError(f"{path}: there is no network '{name}'; there are {', '.join(networks)}")
    found: State = networks[name or next(iter(networks))]
    return found


def network(config: RunConfig, state: State, device: torch.device) -> SegmentationNetwork:
    """Return the run's network with the tensors of ``state``; no pretrained file is needed.

    Raises UserError for tensors of another network.
    """
    architecture = dataclasses.replace(config.protocol.network, weights="none")
    built = build(architecture, len(config.dataset.classes))
    try:
        built.load_state_dict(state)
    except RuntimeError:
        raise UserError(
            f"{config.run}: the weights are of another network than the one of protocols: "
            f"{config.protocol_name}, or of another number of classes; give a file of this network"
        ) from None
    return built.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def recalibrate(
    network: SegmentationNetwork,
    config: RunConfig,
    dataset: PreparedDataset,
    split: Split,
    device: torch.device,
) -> None:
    """Estimate batch norm's statistics anew, as the mean over the labelled crops of the run's first steps.

    The protocol's evaluation says how many steps. A method whose last batches are not like the images that
    are scored, such as strong views, leaves other statistics behind.
    """
    protocol, steps = config.protocol, config.protocol.evaluation.recalibrate
    assert steps is not None
    crops = labelled_batches(
        Images(dataset), split.labelled, protocol.geometry,
        protocol.labelled_batch, config.run.seed, 0, steps, protocol.workers,
    )  # fmt: skip
    seed_everything(config.run.seed, 0)  # dropout is active, as in training
    with (
        enough_memory_for_a_step(config, unlabelled=False),
        torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bf16"),
    ):
        update_bn((on_device(*each, None, device)[0].images for each in crops), network)
