import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from semiseg.base.parameters import Geometry
from semiseg.losses import cross_entropy, supervised_contrastive_loss
from semiseg.methods import pixel_contrast
from semiseg.methods.contract import IGNORE, Labelled, Task
from semiseg.methods.pixel_contrast import Config, Method
from tests.methods.waits import Waits
from tests.tiny import tiny_network

CLASSES, BATCH, CROP, STEPS = 4, 2, 32, 1000
SMALL = Config(dim=8, max_views=6)
STEP = 500


def learner(config: Config = SMALL, **changes: Any) -> Method:
    torch.manual_seed(0)
    task = Task(STEPS, labelled_images=12, background=0, unlabelled_images=30)
    return Method(lambda: tiny_network(CLASSES), dataclasses.replace(config, **changes), task).train()


def labelled() -> Labelled:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(CLASSES, (BATCH, CROP // 8, CROP // 8), generator=generator)
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks[:, :8] = IGNORE
    return Labelled(torch.rand(BATCH, 3, CROP, CROP, generator=generator), masks)


def unlabelled() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    padding = torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)
    padding[:, :, 25:] = 255
    return {"image": torch.rand(BATCH, 3, CROP, CROP, generator=generator), "mask": padding}


def take_step(method: Method, step: int = STEP) -> tuple[Tensor, dict[str, float]]:
    torch.manual_seed(step)
    images = unlabelled() if method.config.unlabelled == "fixmatch" else None
    loss, logs = method.training_step(labelled(), images, step)
    return loss, {name: float(log) for name, log in logs.items()}


def test_the_contrast_starts_after_its_share_of_the_run() -> None:
    for step, started in ((0, False), (124, False), (125, True), (999, True)):
        _, logs = take_step(learner(), step)
        assert (logs["contrast"] > 0) == started
        assert (logs["samples"] > 0) == started


@pytest.mark.parametrize("weight", [0.0, 0.1, 3.0])
def test_the_total_is_the_weighted_sum(weight: float) -> None:
    loss, logs = take_step(learner(weight=weight))
    assert loss.item() == pytest.approx(logs["supervised"] + weight * logs["contrast"], rel=1e-6)
    expected = cross_entropy(learner().student(labelled().images), labelled().masks)
    assert logs["supervised"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("denominator", ["negatives", "others"])
def test_the_contrast_compares_normalised_features_of_labelled_positions(
    denominator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Tensor, Tensor, Tensor, dict[str, Any]]] = []

    def spy(features: Tensor, labels: Tensor, valid: Tensor, **options: Any) -> Tensor:
        given.append((features.detach(), labels, valid, options))
        return supervised_contrastive_loss(features, labels, valid, **options)

    monkeypatch.setattr(pixel_contrast, "supervised_contrastive_loss", spy)
    method = learner(denominator=denominator, temperature=0.2)
    with torch.no_grad():
        features = method.projection(method.student.features(labelled().images))
    _, logs = take_step(method)
    (samples, classes, valid, options), labels = given[0], labelled().masks
    assert options == {"temperature": 0.2, "denominator": denominator}
    assert logs["samples"] == valid.sum() > 0

    positions = normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    labels = interpolate(labels[:, None].float(), features.shape[-2:]).flatten().long()
    drawn = [int((positions - row).abs().sum(dim=1).argmin()) for row in samples[valid]]
    assert len(set(drawn)) == len(drawn)
    assert torch.allclose(positions[drawn], samples[valid], atol=1e-6)
    assert torch.equal(labels[drawn], classes[valid])
    assert IGNORE not in classes


def test_rare_classes_and_ignored_pixels_have_no_samples() -> None:
    _, logs = take_step(learner(max_views=64))
    assert logs["samples"] == 0
    assert logs["contrast"] == 0


def test_the_samples_are_shared_out() -> None:
    _, logs = take_step(learner(max_samples=20))
    assert 0 < logs["samples"] <= 20


def test_gradients_reach_the_features_through_the_projection() -> None:
    method = learner()
    loss, _ = take_step(method)
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(parameter.grad.any() for parameter in method.projection[1].parameters())


# --- beside FixMatch ------------------------------------------------------------------------------------


def test_unlabelled_images_are_read_for_fixmatch_only() -> None:
    geometry = Geometry(base_size=40, scale=(1.0, 1.0), crop=CROP)
    assert pixel_contrast.views(SMALL, geometry) is None
    assert pixel_contrast.views(dataclasses.replace(SMALL, unlabelled="fixmatch"), geometry) is not None


def test_beside_fixmatch_the_two_cross_entropies_are_halved() -> None:
    loss, logs = take_step(learner(unlabelled="fixmatch", threshold=0.0))
    assert logs["strong"] > 0
    expected = (logs["supervised"] + logs["strong"]) / 2 + 0.1 * logs["contrast"]
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    _, logs = take_step(learner(unlabelled="fixmatch", threshold=1.0))
    assert logs["strong"] == 0


@pytest.mark.parametrize("options", [{}, {"unlabelled": "fixmatch", "denominator": "others"}])
def test_a_step_never_waits_for_the_device(options: dict[str, Any]) -> None:
    method = learner(**options)
    take_step(method)
    with Waits() as waits:
        loss, _ = method.training_step(labelled(), unlabelled() if options else None, STEP)
        loss.backward()
        method.after_step(STEP)
    assert waits.found == set()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weight", -0.1),
        ("temperature", 0.0),
        ("start_share", 1.1),
        ("denominator", "positives"),
        ("max_views", 0),
        ("unlabelled", "unimatch"),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option}"):
        Config(**{option: value})
