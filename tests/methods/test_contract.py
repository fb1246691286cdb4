"""Every method, and two written for this test, keep the contract that the training loop relies on."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Protocol
from semiseg.base.tree import from_tree
from semiseg.methods import cct, contract
from semiseg.methods.contract import Config, Labelled, Method, Rates, Task, Unlabelled
from semiseg.models.network import SegmentationNetwork
from semiseg.training import step as training_step
from tests import miniature
from tests.methods import many_decoders
from tests.methods.operations import Operations
from tests.tiny import tiny_network

CLASSES, BATCH, CROP = 4, 2, 32
STEPS = 10_000
MOMENTS = (0, 1_500, 2_500, 9_999)  # before, during and after the start of the papers' schedules
TASK = Task(STEPS, labelled_images=4, background=0, unlabelled_images=12)
RATES = Rates(backbone=0.001, head=0.01)
PROTOCOL: Protocol = dataclasses.replace(
    from_tree(Protocol, miniature.PROTOCOL, "mini"), steps=STEPS, labelled_batch=BATCH, unlabelled_batch=BATCH
)


@pytest.fixture(params=[*miniature.METHODS, *miniature.WRITTEN])
def name(request: pytest.FixtureRequest, written_methods: list[str]) -> str:
    return str(request.param)


def configured(name: str) -> Config:
    """Return the method's defaults, as a run under PROTOCOL has them."""
    return contract.configured(name, {}, PROTOCOL)


def build(name: str, classes: int = CLASSES) -> Method:
    torch.manual_seed(0)
    return contract.build(name, lambda: tiny_network(classes, 8, 4), configured(name), TASK).train()


def batch(name: str, size: int = BATCH, classes: int = CLASSES) -> tuple[Labelled, Unlabelled | None]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, CROP, CROP, generator=generator)
    masks = torch.randint(classes, (size, CROP, CROP), generator=generator)
    masks[:, :4] = contract.IGNORE
    view = contract.views(name, configured(name), PROTOCOL.geometry)
    if view is None:
        return Labelled(images, masks), None
    raw = torch.randint(256, (size, 3, 36, 40), dtype=torch.uint8, generator=generator)
    views = [view(image, generator) for image in raw]
    stacked = {key: torch.stack([each[key] for each in views]) for key in views[0]}
    return Labelled(images, masks), {
        key: each.float() / 255 if each.dtype == torch.uint8 and each.ndim == 4 else each
        for key, each in stacked.items()
    }


def take_step(learner: Method, name: str, step: int) -> tuple[torch.Tensor, contract.Logs]:
    labelled, unlabelled = batch(name)
    training_step.seed_everything(0, step)
    return learner.training_step(labelled, unlabelled, step)


def test_a_method_has_its_four_public_names(name: str) -> None:
    module = contract.module(name)
    assert isinstance(module.REVISION, int)
    assert issubclass(module.Config, Config)
    assert dataclasses.is_dataclass(module.Config)
    assert callable(module.views)
    assert issubclass(module.Method, Method)


def test_a_step_gives_a_finite_loss_and_the_same_detached_logs(name: str) -> None:
    learner, seen = build(name), set()
    for step in MOMENTS:
        loss, logs = take_step(learner, name, step)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss.requires_grad
        for log in logs.values():
            assert log.shape == ()
            assert not log.requires_grad
            assert torch.isfinite(log)
        seen.add(tuple(logs))
        learner.after_step(step)
    assert len(seen) == 1
    assert not {"loss", "gradient_norm"} & set(seen.pop())  # which the loop adds itself


def test_gradients_reach_all_of_a_trained_network_and_nothing_of_a_teacher(name: str) -> None:
    learner = build(name)
    for step in MOMENTS:
        learner.zero_grad(set_to_none=True)
        loss, _ = take_step(learner, name, step)
        loss.backward()
        for network in learner.networks().values():
            trained = contract.trained(network)
            assert len(trained) in (0, len(list(network.parameters())))
            assert all(parameter.grad is not None for parameter in trained)
        assert all(
            parameter.grad is None for parameter in learner.parameters() if not parameter.requires_grad
        )


def test_every_trained_parameter_takes_a_gradient_at_some_moment(name: str) -> None:
    learner, without = build(name), None
    for step in MOMENTS:
        learner.zero_grad(set_to_none=True)
        take_step(learner, name, step)[0].backward()
        lacking = {
            key for key, each in learner.named_parameters() if each.requires_grad and each.grad is None
        }
        without = lacking if without is None else without & lacking
        learner.after_step(step)
    assert not without


# Most operations of a step on the CPU, with a network of three layers. Lower a number that can be lower.
OPERATIONS = {
    "cct": 300,
    "cmb": 1940,
    "cps": 185,
    "dcc": 595,
    "fixmatch": 285,
    "mean_teacher": 150,
    "pixel_contrast": 235,
    "supervised": 45,
    "u2pl": 440,
}


@pytest.mark.parametrize("method", miniature.METHODS)
def test_more_images_and_classes_take_no_more_operations(method: str) -> None:
    counts = []
    for size, classes in ((BATCH, CLASSES), (2 * BATCH, CLASSES), (BATCH, 2 * CLASSES)):
        learner = build(method, classes)
        labelled, unlabelled = batch(method, size, classes)
        for step in MOMENTS[2:]:
            training_step.seed_everything(0, step)
            with Operations() as operations:
                learner.training_step(labelled, unlabelled, step)[0].backward()
                learner.after_step(step)
        counts.append(operations.count)
    assert counts[0] == counts[1] == counts[2]
    assert counts[0] <= OPERATIONS[method]


def test_the_networks_are_the_methods_own_and_the_first_is_the_headline(name: str) -> None:
    learner = build(name)
    networks = learner.networks()
    assert networks
    assert list(networks) == list(learner.networks())
    for label, network in networks.items():
        assert label.isidentifier()
        assert isinstance(network, SegmentationNetwork)
        assert network is learner.networks()[label]
        assert any(network is module for module in learner.modules())
        assert network.num_classes == CLASSES


def test_every_trained_parameter_is_in_one_group_and_no_other_is(name: str) -> None:
    learner = build(name)
    grouped = [id(each) for group in learner.parameter_groups(RATES) for each in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(each) for each in contract.trained(learner)}


def test_every_trained_backbone_learns_at_the_backbones_rate(name: str) -> None:
    learner = build(name)
    rates = {id(each): group["lr"] for group in learner.parameter_groups(RATES) for each in group["params"]}
    seen = set()
    for network in learner.networks().values():
        backbone = {id(each) for each in network.backbone.parameters()}
        for parameter in contract.trained(network):
            expected = RATES.backbone if id(parameter) in backbone else RATES.head
            assert rates[id(parameter)] == expected
            seen.add(expected)
    assert seen == {RATES.backbone, RATES.head}


def test_a_group_of_its_own_keeps_its_own_rate_through_the_schedule() -> None:
    torch.manual_seed(0)
    learner = many_decoders.Method(lambda: tiny_network(CLASSES), many_decoders.Config(), TASK)
    optimiser = training_step.new_optimiser(learner, PROTOCOL.optimiser)
    schedule = training_step.poly(optimiser, PROTOCOL, 0)
    for _ in range(STEPS // 2):
        optimiser.step()
        schedule.step()
    rate = PROTOCOL.optimiser.learning_rate * 0.5**PROTOCOL.optimiser.power
    factors = (PROTOCOL.optimiser.backbone_factor, 1, 2)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([rate * f for f in factors])


def test_a_step_is_a_function_of_state_seed_and_step(name: str) -> None:
    one, other = build(name), build(name)
    for step in MOMENTS:
        loss, _ = take_step(one, name, step)
        again, _ = take_step(other, name, step)
        assert torch.equal(loss, again)


def test_a_state_dict_restores_everything(name: str, tmp_path: Path) -> None:
    learner = build(name)
    for step in MOMENTS[:-1]:
        take_step(learner, name, step)
        learner.after_step(step)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    restored = build(name)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected, _ = take_step(learner, name, MOMENTS[-1])
    loss, _ = take_step(restored, name, MOMENTS[-1])
    assert torch.equal(loss, expected)


def test_after_a_step_nothing_that_is_trained_has_moved(name: str) -> None:
    learner = build(name)
    before = [each.detach().clone() for each in contract.trained(learner)]
    learner.after_step(0)
    assert all(map(torch.equal, before, contract.trained(learner)))


def test_it_trains_under_bf16_autocast(name: str) -> None:
    learner = build(name)
    for step in MOMENTS:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = take_step(learner, name, step)
        loss.backward()
        assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("cmb", {}, r"recipes: own: ramp_up_steps: 2000 .* 1000"),
        ("cmb", {"ramp_up_steps": 20}, r"recipes: own: memory_lead_steps: 1000 .* 20"),
        ("dcc", {"start_share": 0.9999}, r"recipes: own: start_share: 0\.9999 .* 1000"),
        ("u2pl", {"start_share": 1.0}, r"recipes: own: start_share: 1\.0 .* 1000"),
        ("pixel_contrast", {"start_share": 1.0}, r"recipes: own: start_share: 1\.0 .* 1000"),
        ("dcc", {"temperature": -1.0}, r"recipes: own: temperature: -1\.0"),
        ("dcc", {"temprature": 1.0}, r"recipes: own: .*'temprature'"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_recipe(
    method: str, options: dict[str, object], message: str
) -> None:
    short = dataclasses.replace(PROTOCOL, steps=1000)
    with pytest.raises(UserError, match=message):
        contract.configured(method, options, short, "params.yaml: recipes: own")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dcc", {"stride": 4}, "stride: 4 does not fit features that lie 8 pixels apart"),
        ("cct", {"decoder": "subpixel"}, r"decoder: subpixel .* not 6"),
        ("cct", dict.fromkeys(cct.FAMILIES, 0) | {"object_mask": 2}, r"object_mask need a background class"),
    ],
)
def test_what_the_network_or_the_dataset_does_not_have_is_refused(
    method: str, options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work, by the recipe, and again where one run is started."""
    stride = 6 if "decoder" in options else 4
    monkeypatch.setattr(contract, "shapes", lambda network: tiny_network(2, stride=stride))
    tree = copy.deepcopy(miniature.PARAMS)
    tree["recipes"] = {method: {"own": options}}
    tree["protocols"]["mini"]["methods"] = {}
    tree["protocols"]["mini"]["steps"] = STEPS
    tree["grids"]["mini"]["recipes"] = [f"{method}-own"]
    tree["datasets"]["mini"]["background"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    params = parameters.load(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=rf"recipes: {method}-own \(under protocols: mini\): .*{message}"):
        contract.check_options(params)

    config = contract.configured(method, options, PROTOCOL)
    task = dataclasses.replace(TASK, background=None)
    with pytest.raises(UserError, match=rf"params.yaml: {method}: .*{message}"):
        contract.build(method, lambda: tiny_network(CLASSES, stride=stride), config, task)
