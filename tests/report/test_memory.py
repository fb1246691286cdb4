"""Memory of a step from shapes alone: against computed steps, and what is suggested for a small card."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semiseg.base import parameters
from semiseg.base.parameters import RunConfig
from semiseg.methods import contract
from semiseg.report import memory
from semiseg.report.throughput import random_batch, untrained_learner
from semiseg.training.step import new_optimiser, seed_everything, take_step
from tests import miniature
from tests.miniature import CPU

GIB = memory.GIB


def test_tensors_are_counted_while_they_live() -> None:
    before = torch.zeros(100)
    with memory.PeakMemory() as counted:
        counted.count([before, before[3:]])  # one storage
        assert counted.now == 400
        one = before + 1
        two = one.view(10, 10).double()
        assert counted.now == 400 + 400 + 800
        del one
        three = two[0] * 2
        assert counted.now == 400 + 800 + 80
        assert counted.peak == 1600
        del two, three
    assert (counted.now, counted.peak) == (400, 1600)


def computed(config: RunConfig) -> tuple[int, int, int]:
    """Take two steps; return the bytes at the second's peak, before it, and kept for its backward pass."""
    last, protocol = config.protocol.steps - 1, config.protocol
    options = contract.configured(config.method, config.options, protocol)
    view = contract.views(config.method, options, protocol.geometry)
    labelled, unlabelled = random_batch(config, view, CPU)
    learner = untrained_learner(config, options, CPU)
    optimiser = new_optimiser(learner, protocol.optimiser)
    kept: dict[int, int] = {}
    there = {
        tensor.untyped_storage()._cdata for tensor in (*learner.parameters(), *learner.buffers(), *labelled)
    }

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in there:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with memory.PeakMemory() as counted:
        counted.count([*learner.parameters(), *learner.buffers(), *labelled, *(unlabelled or {}).values()])
        for repetition in range(2):
            if repetition:
                counted.peak, state = counted.now, counted.now
            kept.clear()
            seed_everything(repetition, last)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                take_step(config, learner, learner, optimiser, labelled, unlabelled, last)
    return counted.peak, state, sum(kept.values())


def larger(recipe: str, crop: int, **protocol: object) -> RunConfig:
    """Return a miniature run with larger batches and crops, so that activations count beside parameters."""
    config = miniature.config(recipe, labelled_batch=4, unlabelled_batch=4, **protocol)
    geometry = dataclasses.replace(config.protocol.geometry, crop=crop)
    return dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, geometry=geometry))


@pytest.mark.parametrize(("recipe", "crop"), [("supervised", 128), ("cmb", 48)])
def test_shapes_alone_tell_what_a_computed_step_takes(mini_project: Path, recipe: str, crop: int) -> None:
    config = larger(recipe, crop)
    peak, state, kept = computed(config)
    assert memory.of_step(config) == pytest.approx(peak, rel=0.02)
    # What autograd keeps lives beside the state when backward begins; the rest is gone an operation later
    if recipe == "supervised":
        assert kept > 0.2 * state
        gradients = state / 3  # beside parameters and momentum; set to none before the step
        assert state - gradients + kept <= peak <= 1.1 * (state + kept)


def test_what_masks_select_is_bounded_by_all(mini_project: Path) -> None:
    config = larger("dcc", 48)
    peak, _, _ = computed(config)
    assert peak <= memory.of_step(config) <= 1.5 * peak


def test_changes_take_less_memory(mini_project: Path) -> None:
    plain = memory.of_step(larger("supervised", 256))
    for change in ({"checkpoint_activations": True}, {"accumulate": 2}, {"precision": "bf16"}):
        assert memory.of_step(larger("supervised", 256, **change)) < 0.95 * plain


# --- what is suggested, for steps of made-up sizes ----------------------------------------------------------


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GiB for the state, and 8 for a crop of 64; parts divide the latter, and checkpoints halve it."""

    def of_step(config: RunConfig) -> int:
        protocol = config.protocol
        share = (protocol.geometry.crop / 64) ** 2 / protocol.accumulate
        return round(GIB * (1 + 8 * share * (0.5 if protocol.checkpoint_activations else 1)))

    monkeypatch.setattr(memory, "of_step", of_step)


@pytest.mark.parametrize(
    ("card", "recipe", "change"),
    [
        (11.0, "supervised", {}),  # 9 x 1.1 + 1 = 10.9
        (10.8, "supervised", {"checkpoint_activations": True}),
        (6.4, "supervised", {"accumulate": 4}),  # with checkpoints, or in two parts, 5 x 1.1 + 1 = 6.5
        (4.2, "supervised", {"accumulate": 4, "checkpoint_activations": True}),
        (3.1, "supervised", None),  # a crop of 21 pixels would do
        (6.4, "cmb", {"geometry": {"crop": 32}}),  # no parts; 3.9 of the 8 GiB: a crop of 44 pixels
    ],
)
def test_the_first_change_that_fits_is_suggested(
    mini_project: Path, sized: None, card: float, recipe: str, change: dict[str, object] | None
) -> None:
    config = miniature.config(recipe, labelled_batch=8, unlabelled_batch=8)
    geometry = dataclasses.replace(config.protocol.geometry, crop=64)
    config = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, geometry=geometry))
    found = memory.fit(config, card * GIB)
    assert found.peak == 9 * GIB
    assert found.change == change
    if change is not None:
        assert memory.needed(found.changed) <= card * GIB


def test_every_recipe_of_a_grid_is_told(mini_project: Path, sized: None) -> None:
    params = parameters.load()
    text = memory.terminal(params, "mini", 4.4)
    rows = {line.split()[0]: line for line in text.splitlines() if " mini " in line}
    assert list(rows) == list(params.grids["mini"].recipes)
    assert rows["cmb"].split()[2:] == ["3.0", "fits"]  # a crop of 32: a quarter of 8 GiB
