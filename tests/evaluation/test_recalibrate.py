"""Batch norm's statistics, estimated anew from labelled crops before scoring."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from semiseg.base import parameters
from semiseg.base.parameters import RunConfig
from semiseg.data import prepared, splits
from semiseg.data.streams import Images, labelled_batches
from semiseg.evaluation.evaluate import score_run
from semiseg.evaluation.score import Scoring
from semiseg.evaluation.trained import recalibrate
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint, loop
from tests import miniature

BATCHES = 3


@pytest.fixture
def config(mini_project: Path) -> RunConfig:
    config = parameters.load().run(miniature.run("supervised"))
    evaluation = dataclasses.replace(config.protocol.evaluation, recalibrate=BATCHES)
    return dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, evaluation=evaluation))


def network(config: RunConfig) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build(config.protocol.network, len(config.dataset.classes))


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def disturb(network: nn.Module) -> None:
    for norm in norms(network):
        norm.running_mean.add_(3)
        norm.running_var.mul_(50)


def test_statistics_are_the_means_over_batches_of_labelled_crops(config: RunConfig) -> None:
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    split = splits.read(config.run.split, 0)
    one, other = network(config), network(config)
    disturb(other)
    for each in (one, other):
        recalibrate(each, config, dataset, split, torch.device("cpu"))
    for ours, theirs in zip(norms(one), norms(other), strict=True):
        assert torch.equal(ours.running_mean, theirs.running_mean)  # nothing is left of the old ones
        assert torch.equal(ours.running_var, theirs.running_var)

    convolution, norm = one.backbone.model.conv1[:2]
    means, variances = [], []
    crops = labelled_batches(Images(dataset), split.labelled, config.protocol.geometry, 2, 0, 0, BATCHES, 0)
    for images, _ in crops:
        values = convolution((images / 255 - one.mean) / one.std)
        means.append(values.mean(dim=(0, 2, 3)))
        variances.append(values.var(dim=(0, 2, 3)))
    assert len(means) == BATCHES
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4)
    assert one.training


def test_a_run_that_asks_for_it_is_scored_without_the_statistics_of_its_training(config: RunConfig) -> None:
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    split, device = splits.read(config.run.split, 0), torch.device("cpu")
    loop.train(config, dataset, split, device, Scoring.of(config, device))
    before = score_run(config, dataset, split, device)
    path = config.run.artefacts / "model.pt"
    model = checkpoint.read(path)
    for state in model["last"].values():
        for name, tensor in state.items():
            if name.endswith(("running_mean", "running_var")):
                tensor.add_(3)
    checkpoint.write(model, path)
    after = score_run(config, dataset, split, device)
    assert after.last == before.last
    assert after.confusion == before.confusion
