"""The probe of a pretraining: votes of nearest neighbours, over the positions of real images."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE
from semiseg.data import prepared
from semiseg.data.streams import evaluation_images
from semiseg.evaluation import probe
from semiseg.evaluation.probe import Probe, nearest
from tests.miniature import CPU
from tests.pretraining import recipes


def test_votes_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "NEIGHBOURS", 4)
    bank, labels = normalize(torch.randn(30, 5)), torch.randint(3, (30,))
    features = normalize(torch.randn(10, 5))
    expected = []
    for row in features:
        cosines = (bank @ row).tolist()
        votes = np.zeros(3)
        for j in sorted(range(30), key=lambda j: -cosines[j])[:4]:
            votes[labels[j]] += math.exp(cosines[j] / 0.07)
        expected.append(int(votes.argmax()))
    assert nearest(features, bank, labels, 3).tolist() == expected


def test_every_labelled_position_counts_and_known_ones_score_one(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipes.config("simclr")
    dataset = prepared.open_dataset("mini", config.dataset)
    found = Probe.of(config, dataset, CPU)
    assert found.long_side == 2 * config.recipe.crop
    encoder = recipes.encoder()
    val = list(evaluation_images(dataset, dataset.ids("val"), 0))
    val[0][2][:16] = IGNORE
    matrix = found.count({"backbone": encoder}, val)["backbone"]
    assert encoder.training
    assert matrix.shape == (3, 3)
    assert 0 < int(matrix.sum()) < 2 * 4 * 4  # images of 48 pixels, scaled to 64, 16 pixels a position

    # A position of an image that is in the bank is its own nearest neighbour.
    monkeypatch.setattr(probe, "NEIGHBOURS", 1)
    itself = dataclasses.replace(found, ids=dataset.ids("val"))
    images = evaluation_images(dataset, dataset.ids("val"), 0)
    assert itself.figures(itself.count({"backbone": encoder}, images)["backbone"]) == {"miou": 1.0}


def test_a_training_list_without_masks_is_refused(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipes.config("simclr")
    dataset = prepared.open_dataset("mini", config.dataset)
    monkeypatch.setattr(type(dataset), "by_mask", lambda self: ((), self.ids("train")))
    with pytest.raises(UserError, match=r"^data/mini: no training image has a mask"):
        Probe.of(config, dataset, CPU)
