import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Geometry
from semiseg.losses import directional_blocks
from semiseg.methods.contract import IGNORE, Labelled, Task, Unlabelled
from semiseg.methods.dcc import Config, Method, views
from tests.methods.waits import Waits
from tests.project import ROOT
from tests.tiny import tiny_network

CLASSES, BATCH, CROP, STEPS, STEP = 4, 4, 32, 80, 40
GEOMETRY = Geometry(base_size=40, scale=(0.8, 1.5), crop=CROP)
LOSS = {
    "temperature": (0.07, 0.5),
    "threshold": (0.0, 0.5),
    "directional": (False,),
    "positive_filter": (False,),
    "negative_sampling": (False,),
    "normalize": ("selected",),
}


def learner(**changes: Any) -> Method:
    """Return a method whose student's confidences lie on both sides of γ."""
    torch.manual_seed(0)
    student = tiny_network(CLASSES)
    with torch.no_grad():
        student.classifier.weight.mul_(60)
    return Method(lambda: student, Config(**changes), Task(STEPS, 4, background=None))


def labelled() -> Labelled:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(CLASSES, (BATCH, CROP, CROP), generator=generator)
    masks[:, :4] = IGNORE
    return Labelled(torch.rand(BATCH, 3, CROP, CROP, generator=generator), masks)


def unlabelled(seed: int = 2, **changes: Any) -> dict[str, Tensor]:
    """Return views as the loader gives them; the second image is narrower than a crop."""
    generator = torch.Generator().manual_seed(seed)
    view = views(Config(**changes), GEOMETRY)
    seen = []
    for width in (50, 11, 60, 45):
        image = torch.randint(256, (3, 50, width // 4 + 1), dtype=torch.uint8, generator=generator)
        seen.append(view(image.repeat_interleave(4, dim=2)[:, :, :width], generator))
    batch = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
    for name in ("image1", "image2"):
        batch[name] = batch[name].float() / 255
    return batch


def take_step(method: Method, step: int = STEP, seed: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(step)
    return method.training_step(labelled(), unlabelled(seed), step)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the colour changes off."""
    monkeypatch.setattr(Method, "augmented", lambda method, images: images)


# --- the equations, image by image ----------------------------------------------------------------------


def literal_views(method: Method, batch: Unlabelled, pooled: bool) -> list[dict[str, Any]]:
    """Return the student's outputs for each view, with the overlap cut out image by image."""
    found = []
    for view in ("1", "2"):
        features = method.student.features(batch["image" + view])
        features = avg_pool2d(features, 2) if pooled else features
        cell = CROP // features.shape[-1]
        projected = normalize(method.projector(features), dim=1)
        probability, label = method.student.classifier(features).softmax(dim=1).max(dim=1)
        everything, overlap = [], []
        for i in range(BATCH):
            rows = [projected[i], probability[i].detach()[None], label[i][None]]
            everything.append([each.flatten(1).T for each in rows])
            if batch["flip" + view][i]:
                rows = [each.flip(-1) for each in rows]
            y0, x0, y1, x1 = (batch["box" + view][i] // cell).tolist()
            overlap.append([each[:, y0:y1, x0:x1].flatten(1).T for each in rows])
        found.append({**joined(overlap), "all": joined(everything)})
    return found


def joined(images: list[list[Tensor]]) -> dict[str, Tensor]:
    rows, confidence, labels = (torch.cat(each) for each in zip(*images, strict=True))
    return {"rows": rows, "confidence": confidence, "labels": labels}


def literal_contrast(one: dict[str, Any], two: dict[str, Any], banked: list[Any], config: Config) -> Tensor:
    everything = [one["all"], two["all"], *banked]
    negatives = torch.cat([each["rows"] for each in everything]).detach()
    negative_labels = torch.cat([each["labels"] for each in everything])
    total = torch.zeros(())
    for anchor, positive in ((one, two), (two, one)):
        r_positive = torch.exp((anchor["rows"] * positive["rows"].detach()).sum(1) / config.temperature)
        r_negative = torch.exp(anchor["rows"] @ negatives.T / config.temperature)
        if config.negative_sampling:
            r_negative = r_negative * (anchor["labels"] != negative_labels.T)
        losses = -torch.log(r_positive / (r_positive + r_negative.sum(1)))
        mask = torch.ones_like(losses)
        if config.directional:
            mask = mask * (anchor["confidence"] < positive["confidence"])[:, 0]
        if config.positive_filter:
            mask = mask * (positive["confidence"] > config.threshold)[:, 0]
        assert mask.sum() > 0
        total = total + (mask * losses).sum() / (len(mask) if config.normalize == "overlap" else mask.sum())
    return total


def literal_l2(one: dict[str, Any], two: dict[str, Any]) -> Tensor:
    """Return the plain distance: the value of each direction, and the gradient of both together."""
    distance = (one["rows"] - two["rows"]).square().sum(1).mean()
    return distance + distance.detach()


def gradients(method: Method, loss: Tensor) -> list[Tensor]:
    parameters = list(method.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def assert_same(method: Method, loss: Tensor, expected: Tensor) -> None:
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(gradients(method, loss), gradients(method, expected), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pooling": False}, {"projector": False}]
    + [{name: value} for name, values in LOSS.items() for value in values],
)
@pytest.mark.usefixtures("plain")
def test_the_contrast_is_the_printed_one_over_each_images_overlap(changes: dict[str, Any]) -> None:
    method, batch = learner(**changes), unlabelled()
    one, two = literal_views(method, batch, method.config.pooling)
    assert_same(method, method.agreement(batch)[0], literal_contrast(one, two, [], method.config))


@pytest.mark.parametrize("directional", [True, False])
@pytest.mark.parametrize("positive_filter", [True, False])
@pytest.mark.usefixtures("plain")
def test_the_selected_share_is_that_of_the_overlap_which_both_masks_keep(
    directional: bool, positive_filter: bool
) -> None:
    method, batch = learner(directional=directional, positive_filter=positive_filter), unlabelled()
    one, two = (view["confidence"][:, 0].tolist() for view in literal_views(method, batch, pooled=True))
    kept = [
        (not directional or own < other) and (not positive_filter or other > method.config.threshold)
        for anchors, others in ((one, two), (two, one))
        for own, other in zip(anchors, others, strict=True)
    ]
    _, selected = method.agreement(batch)
    assert selected.item() == pytest.approx(sum(kept) / len(kept))
    assert (selected < 1) == (directional or positive_filter)


@pytest.mark.usefixtures("plain")
def test_the_l2_row_is_the_mean_distance_of_the_overlap() -> None:
    method, batch = learner(objective="l2"), unlabelled()
    one, two = literal_views(method, batch, pooled=True)
    assert_same(method, method.agreement(batch)[0], literal_l2(one, two))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.usefixtures("plain")
def test_features_of_the_banks_steps_are_negatives_too(steps: int) -> None:
    method, earlier = learner(bank_steps=steps), []
    for seed in range(4):
        batch = unlabelled(seed)
        one, two = literal_views(method, batch, pooled=True)
        expected = literal_contrast(one, two, earlier[-2 * steps :], method.config)
        assert_same(method, method.agreement(batch)[0], expected)
        earlier += [{name: each.detach() for name, each in view["all"].items()} for view in (one, two)]


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9])
@pytest.mark.usefixtures("plain")
def test_self_training_learns_its_own_confident_predictions(threshold: float) -> None:
    method, batch = learner(objective="self_training", threshold=threshold), unlabelled()
    losses, pixels = [], 0
    logits = method.student(batch["image1"])
    for i, (rows, columns) in enumerate(batch["inside"].tolist()):
        image = logits[i].flip(-1) if batch["flip1"][i] else logits[i]
        image = image[:, :rows, :columns].flatten(1).T
        confidence, labels = image.softmax(dim=1).max(dim=1)
        kept = confidence > threshold
        pixels += len(kept)
        losses.append(cross_entropy(image[kept], labels[kept], reduction="none"))
    assert batch["inside"].min() < CROP
    loss, selected = method.self_training(batch)
    assert_same(method, loss, torch.cat(losses).mean())
    assert selected.item() == pytest.approx(len(torch.cat(losses)) / pixels)


# --- the total ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_the_total_is_cross_entropy_and_the_weighted_consistency(weight: float) -> None:
    loss, logs = take_step(learner(weight=weight))
    assert logs["consistency"] > 0
    assert loss.item() == pytest.approx((logs["supervised"] + weight * logs["consistency"]).item(), rel=1e-6)
    method, (images, masks) = learner(), labelled()
    expected = cross_entropy(method.student(images), masks, ignore_index=IGNORE)
    assert logs["supervised"] == expected


@pytest.mark.parametrize(("share", "first"), [(5 / 80, 5), (0.0, 0), (0.5, 40)])
def test_consistency_starts_after_a_share_of_the_run(share: float, first: int) -> None:
    for step in {max(first - 1, 0), first}:
        _, logs = take_step(learner(start_share=share), step)
        assert (logs["consistency"] > 0) == (step >= first)


def test_a_start_that_no_step_reaches_is_refused_with_both_numbers() -> None:
    protocol = dataclasses.replace(parameters.load(ROOT / "params.yaml").protocols["demo"], steps=10)
    for share in (0.0, 0.5, 0.9):
        Config(start_share=share).check(protocol)
    for share in (0.95, 1.0):
        with pytest.raises(ValueError, match=rf"^start_share: {share} .* 10;"):
            Config(start_share=share).check(protocol)


def test_before_the_start_unlabelled_images_are_not_seen() -> None:
    method, only = learner(bank_steps=1), learner()
    take_step(method, 4)
    only.student(labelled().images)
    assert method.bank.held == 0
    student = method.student.state_dict()
    assert all(torch.equal(student[name], each) for name, each in only.student.state_dict().items())


def test_a_run_with_a_bank_goes_on_exactly() -> None:
    method, restored = learner(bank_steps=2), learner(bank_steps=2)
    for seed in range(3):
        take_step(method, STEP + seed, seed)
    restored.load_state_dict(method.state_dict())
    (one, _), (other, _) = (take_step(each, STEP + 3, 3) for each in (method, restored))
    assert torch.equal(one, other)


# --- switches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "moved"),
    [({name: value}, {"consistency"}) for name, values in LOSS.items() for value in values]
    + [
        ({"pooling": False}, {"consistency"}),
        ({"projector": False}, {"consistency", "heads"}),
        ({"dim": 64}, {"consistency", "heads"}),
        ({"objective": "l2"}, {"consistency"}),
        ({"objective": "self_training"}, {"consistency", "heads"}),
        ({"bank_steps": 1}, {"consistency"}),
        ({"weight": 1.0}, {"loss"}),
        ({"start_share": 0.9}, {"consistency"}),
        ({"context": False}, {"views"}),
        ({"iou": (0.4, 0.6)}, {"views"}),
        ({"unlabelled_scale": (0.8, 1.0)}, {"views"}),
        ({"stride": 16}, {"views"}),
        ({"flip_probability": 1.0}, {"views"}),
        ({"blur_sigma": 2.0}, {"consistency"}),
        ({"blur_taps": (1.0, 4.0, 6.0, 4.0, 1.0)}, {"consistency"}),
        ({"blur_probability": 1.0}, {"consistency"}),
        ({"jitter": (0.1, 0.0, 0.0, 0.0)}, {"consistency"}),
        ({"jitter_probability": 0.0}, {"consistency"}),
        ({"grey_probability": 1.0}, {"consistency"}),
    ],
)
def test_a_switch_moves_what_it_says_and_nothing_else(changes: dict[str, Any], moved: set[str]) -> None:
    def parts(**options: Any) -> dict[str, Any]:
        method = learner(**options)
        student = [each.tolist() for each in method.student.state_dict().values()]
        heads = [tuple(each.shape) for each in method.projector.parameters()]
        take_step(method, STEP, seed=9)  # fills a bank
        loss, logs = take_step(method, STEP + 1)
        seen = {name: each.tolist() for name, each in unlabelled(**options).items()}
        rest = loss - logs["supervised"] - Config().weight * logs["consistency"]
        return {
            "supervised": logs["supervised"].item(),
            "consistency": round(logs["consistency"].item(), 6),
            "loss": round(rest.item(), 5),
            "heads": heads,
            "student": student,
            "views": seen,
        }

    before, after = parts(), parts(**changes)
    assert {name for name in before if before[name] != after[name]} == moved


def test_without_context_both_views_are_the_same_crop() -> None:
    batch = unlabelled(context=False)
    assert torch.equal(batch["box1"], batch["box2"])
    for i in range(BATCH):
        one, two = (
            batch[f"image{k}"][i].flip(-1) if batch[f"flip{k}"][i] else batch[f"image{k}"][i] for k in (1, 2)
        )
        assert torch.equal(one, two)
    assert not torch.equal(unlabelled()["box1"], unlabelled()["box2"])


def test_each_view_has_its_own_colours() -> None:
    images = torch.rand(64, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    method = learner()
    one, two = method.augmented(images), method.augmented(images)
    changed = [(each - images).flatten(1).any(dim=1).float().mean() for each in (one, two)]
    assert all(0.8 < share < 1 for share in changed)  # 1 − 0.5 · 0.2 · 0.8 = 0.92
    same = (one == two).flatten(1).all(dim=1).float().mean()
    assert same < 0.1
    for each in (one, two):
        grey = (each[:, :1] == each).flatten(1).all(dim=1).float().mean()
        assert 0.05 < grey < 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "cosine"}, "objective"),
        ({"normalize": "all"}, "normalize"),
        ({"iou": (0.5, 0.1)}, "iou"),
        ({"unlabelled_scale": (0.0, 1.0)}, "unlabelled_scale"),
        ({"stride": 0}, "stride"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"bank_steps": -1}, "bank_steps"),
        ({"weight": -0.1}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"start_share": 1.5}, "start_share"),
        ({"unlabelled_scale": (2.0, 0.8)}, "unlabelled_scale"),
        ({"iou": (0.0, 1.1)}, "iou"),
        ({"flip_probability": -1.0}, "flip_probability"),
        ({"blur_sigma": 0.0}, "blur_sigma"),
        ({"blur_taps": (1.0, 1.0)}, "blur_taps"),
        ({"blur_taps": (0.0, 0.0, 0.0)}, "blur_taps"),
        ({"blur_taps": (1.0, -2.0, 3.0)}, "blur_taps"),
        ({"blur_probability": 1.5}, "blur_probability"),
        ({"jitter": (-0.1, 0.0, 0.0, 0.0)}, "jitter"),
        ({"jitter": (0.1, 0.1, 0.1, 0.7)}, "jitter"),
        ({"jitter_probability": math.nan}, "jitter_probability"),
        ({"grey_probability": 2.0}, "grey_probability"),
        ({"dim": 0}, "dim"),
        ({"threshold": -0.5}, "threshold"),
    ],
)
def test_an_option_that_means_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_a_stride_that_does_not_fit_is_refused() -> None:
    network = tiny_network(CLASSES)
    with pytest.raises(ValueError, match="stride: 4 does not fit features that lie 8 pixels apart"):
        Config(stride=4).check_network(network, None)
    Config(stride=4, pooling=False).check_network(network, None)
    assert learner(stride=4, pooling=False).cell == 4
    with pytest.raises(UserError, match="crop 36 is not a multiple of DCC's stride 8"):
        views(Config(), Geometry(base_size=40, scale=(1.0, 1.0), crop=36))


# --- gradients and speed --------------------------------------------------------------------------------


def test_gradients_reach_what_trains() -> None:
    for changes, expected in (
        ({}, {"student", "projector"}),
        ({"projector": False}, {"student"}),
        ({"objective": "self_training"}, {"student"}),
        ({"bank_steps": 1}, {"student", "projector"}),
    ):
        method = learner(**changes)
        loss, _ = take_step(method)
        loss.backward()
        named = [(name.split(".")[0], each) for name, each in method.named_parameters()]
        assert {name for name, each in named if each.grad is not None and each.grad.any()} == expected
        assert {name for name, _ in named} == expected


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the shapes that a GPU has; on the CPU the loss knows how many rows are selected."""
    monkeypatch.setattr(directional_blocks, "_all_at_once", lambda pairs: True)
    for objective, steps in itertools.product(("contrast", "l2", "self_training"), (0, 1)):
        method = learner(objective=objective, bank_steps=steps)
        batches = labelled(), unlabelled()
        with Waits() as waits:
            for step in (STEP, STEP + 1):
                loss, _ = method.training_step(*batches, step)
                loss.backward()
                method.after_step(step)
        assert waits.found == set()
