"""The official recipes compute what the released code computes, step by step.

tests/methods/recordings/README.md says what was recorded; ``--recordings FOLDER`` compares with another set.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from semiseg.base import parameters
from semiseg.losses.class_balance import median_frequency_weights
from semiseg.methods import cmb, dcc
from semiseg.methods.common import ramp_up
from semiseg.models import teacher
from semiseg.training.step import poly
from tests.methods.replay import Differences, replay_cmb, replay_dcc
from tests.project import ROOT

CPU = torch.device("cpu")
LIMITS = {"cpu": 1e-4, "cuda": 1e-3}
RECORDED = Path(__file__).parent / "recordings"
NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--recordings") or RECORDED)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_A_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


def assert_equal(differences: Differences, device: torch.device) -> None:
    assert differences.beyond(LIMITS[device.type]) == {}


# --- agreement ------------------------------------------------------------------------------------------


def test_cmb_official_takes_the_released_steps(folder: Path, device: torch.device) -> None:
    assert_equal(replay_cmb(folder, device), device)


@pytest.mark.parametrize("step_save", [1, 2, 0])
def test_dcc_official_takes_the_released_steps(folder: Path, device: torch.device, step_save: int) -> None:
    assert_equal(replay_dcc(folder, step_save, device), device)


def test_cmbs_schedules_are_the_released_ones(folder: Path) -> None:
    recorded = np.load(folder / "cmb_schedules.npz")
    total, ramp = int(recorded["total_steps"]), int(recorded["ramp_up_steps"])
    official = parameters.load(ROOT / "params.yaml").recipes["cmb-official"].options
    config, steps = cmb.Config(**official), range(total)

    def decays(rate: float) -> list[float]:
        return [teacher.decay(step, total, base=config.teacher_decay, rate=rate) for step in steps]

    assert decays(config.teacher_rate) == pytest.approx(recorded["alpha"].tolist(), abs=1e-9)
    assert decays(1e12)[1:] == pytest.approx(recorded["cosine"][1:].tolist(), abs=1e-9)
    assert [ramp_up(step, ramp) for step in steps] == pytest.approx(recorded["ramp_up"].tolist())

    protocol = parameters.load(ROOT / "params.yaml").protocols["voc_cmb_deeplabv3plus"]
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=float(recorded["base_lr"]))
    optimiser.param_groups[0]["initial_lr"] = float(recorded["base_lr"])
    schedule, rates = poly(optimiser, dataclasses.replace(protocol, steps=total), 0), []
    for _ in steps:
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx(recorded["lr"].tolist())


def test_cmbs_class_weights_are_the_released_ones(folder: Path) -> None:
    recorded = np.load(folder / "cmb_class_weights.npz")
    for counts, weights in zip(recorded["counts"], recorded["weights"], strict=True):
        ours = median_frequency_weights(torch.from_numpy(counts).float())
        assert ours.tolist() == pytest.approx(weights.tolist(), rel=1e-4)


# --- one option changed -----------------------------------------------------------------------------------

CMB_SEEN: dict[str, Any] = {
    "pseudo_weight": 0.9,
    "entropy_weight": 0.02,
    "contrast_weight": 0.2,
    "ramp_up_steps": 7,
    "memory_lead_steps": 3,
    "start_late": True,
    "teacher_rate": 1.0,
    "teacher_training_mode": False,
    "confidence_power": 0.0,
    "entropy_normalised": False,
    "class_balance": True,
    "attention": "both",
    "memory_size": 64,
    "memory_filter": False,
    "memory_confidence": 0.5,
    "memory_order": "highest",
    "images_hold": "all",
}
CMB_UNSEEN = {
    # seen by test_cmbs_schedules_are_the_released_ones
    "teacher_decay",
    # set by the shapes of the recorded weights
    "dim",
    # no class has a single pixel, none more than the budget, and statistics of batch norm are not recorded
    "least_features", "memory_rank_all", "strong_first",
    # the views are recorded
    "mix_labelled", "mix_unlabelled", "mix_extra_classes", "weak_jitter", "weak_jitter_probability",
    "strong_scale", "strong_scale_probability", "strong_flip_probability", "strong_jitter",
    "strong_jitter_probability", "strong_blur", "strong_blur_probability", "jitter_additive", "blur_by_axis",
}  # fmt: skip
DCC_SEEN: dict[str, Any] = {
    "objective": "l2",
    "weight": 0.2,
    "start_share": 0.5,
    "pooling": False,
    "temperature": 0.2,
    "threshold": 0.5,
    "directional": False,
    "positive_filter": False,
    "negative_sampling": False,
    "normalize": "overlap",
    "bank_steps": 2,
}
DCC_UNSEEN = {
    # set by the shapes of the recorded weights
    "projector", "dim",
    # the views are recorded, without their colours
    "unlabelled_scale", "context", "iou", "stride", "flip_probability", "blur_sigma", "blur_taps",
    "blur_probability", "jitter", "jitter_probability", "grey_probability",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "seen", "unseen"), [(cmb.Config, CMB_SEEN, CMB_UNSEEN), (dcc.Config, DCC_SEEN, DCC_UNSEEN)]
)
def test_every_option_is_seen_by_the_recordings_or_known_not_to_be(
    config: type, seen: dict[str, Any], unseen: set[str]
) -> None:
    assert not seen.keys() & unseen
    assert seen.keys() | unseen == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("option", CMB_SEEN)
def test_another_option_takes_cmb_away_from_the_released_steps(option: str) -> None:
    assert replay_cmb(RECORDED, CPU, **{option: CMB_SEEN[option]}).beyond(LIMITS["cpu"])


@pytest.mark.parametrize("option", DCC_SEEN)
def test_another_option_takes_dcc_away_from_the_released_steps(option: str) -> None:
    assert replay_dcc(RECORDED, 1, CPU, **{option: DCC_SEEN[option]}).beyond(LIMITS["cpu"])


@pytest.mark.parametrize("option", ["least_features", "memory_rank_all", "strong_first"])
def test_an_option_that_the_recordings_do_not_see_changes_nothing(option: str) -> None:
    other = {"least_features": 1, "memory_rank_all": True, "strong_first": False}[option]
    assert_equal(replay_cmb(RECORDED, CPU, **{option: other}), CPU)


def test_a_difference_that_is_not_a_number_is_found() -> None:
    differences = Differences()
    differences.measure("loss", math.nan, 1.0)
    assert differences.beyond(1e-4).keys() == {"loss"}
