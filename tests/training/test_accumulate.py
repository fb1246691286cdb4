"""A batch that is trained in parts, against the whole batch and against parts by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as torch_distributed

from semiseg.base import distributed
from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Method, Task, Unlabelled
from semiseg.training import step
from tests import miniature
from tests.tiny import tiny_network

BY_PARTS = [name for name in miniature.METHODS if contract.module(name).Config.by_parts]


def config(recipe: str = "supervised", **protocol: Any) -> RunConfig:
    return miniature.config(recipe, labelled_batch=4, unlabelled_batch=4, **protocol)


def drawn(seed: int = 0) -> tuple[Labelled, Unlabelled]:
    generator = torch.Generator().manual_seed(seed)
    images, more = torch.rand(2, 4, 3, 16, 16, generator=generator)
    masks = torch.randint(3, (4, 16, 16), generator=generator)
    return Labelled(images, masks), {"image": more, "mask": torch.zeros(4, 16, 16, dtype=torch.uint8)}


class Without(nn.Module):
    """Stands in for a batch norm and does nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def learner(recipe: str, *, norm: bool) -> Method:
    torch.manual_seed(0)

    def network() -> Any:
        built = tiny_network(3)
        if not norm:
            built.backbone.layers[1] = Without()
        return built

    return contract.build(recipe, network, contract.module(recipe).Config(), Task(10, 2, 0, 6)).train()


def taken(learner: Method, config: RunConfig, labelled: Labelled) -> dict[str, Tensor]:
    """Take a step on labelled images; return its logs, and the gradients by the parameters' names."""
    optimiser = step.new_optimiser(learner, config.protocol.optimiser)
    logs = step.take_step(config, learner, learner, optimiser, labelled, None, 0)
    gradients = {name: each.grad for name, each in learner.named_parameters() if each.grad is not None}
    return {**logs, **gradients}


@pytest.mark.parametrize("parts", [1, 2])
def test_without_batch_norm_parts_give_the_step_of_the_whole(mini_project: Path, parts: int) -> None:
    whole = taken(learner("supervised", norm=False), config(), drawn()[0])
    found = taken(learner("supervised", norm=False), config(accumulate=parts), drawn()[0])
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_batch_norm_sees_a_part(mini_project: Path) -> None:
    labelled, _ = drawn()
    clipless = dataclasses.replace(config().protocol.optimiser, clip_norm=None)
    found = taken(learner("supervised", norm=True), config(accumulate=2, optimiser=clipless), labelled)

    plain = learner("supervised", norm=True)
    losses = []
    for part in (slice(0, 2), slice(2, 4)):
        loss, _ = plain(Labelled(labelled.images[part], labelled.masks[part]), None, 0)
        (loss / 2).backward()
        losses.append(loss.detach())
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    whole = taken(learner("supervised", norm=True), config(), labelled)
    assert not torch.allclose(found["gradient_norm"], whole["gradient_norm"])


@pytest.mark.parametrize("recipe", BY_PARTS)
def test_a_run_in_parts_trains_and_is_another_run(
    mini_project: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "build", lambda network, num_classes: tiny_network(num_classes))
    parts = config(recipe, accumulate=2)
    updates: list[int] = []
    method = contract.module(recipe).Method
    after_step = method.after_step
    monkeypatch.setattr(
        method, "after_step", lambda self, number: (updates.append(number), after_step(self, number))
    )
    model = miniature.train(parts)
    assert model["last_step"] == miniature.STEPS
    assert updates == list(range(miniature.STEPS))  # once a step, not once a part
    assert parts.digest() != config(recipe).digest()


def test_the_parts_are_the_batch(mini_project: Path) -> None:
    run = config("fixmatch", accumulate=2)
    seen: list[Tensor] = []

    class Watch(Method):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def training_step(
            self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
        ) -> tuple[Tensor, contract.Logs]:
            assert unlabelled is not None
            seen.append(torch.cat((labelled.images, unlabelled["image"])))
            return self.weight * 1.0, {}

        def networks(self) -> dict[str, Any]:
            return {}

    labelled, unlabelled = drawn()
    learner = Watch()
    optimiser = torch.optim.SGD(learner.parameters(), 0.1)
    step.take_step(run, learner, learner, optimiser, labelled, unlabelled, 0)
    assert len(seen) == 2
    assert torch.equal(torch.cat([each[:2] for each in seen]), labelled.images)
    assert torch.equal(torch.cat([each[2:] for each in seen]), unlabelled["image"])


@pytest.mark.parametrize("recipe", sorted({*miniature.METHODS} - {*BY_PARTS}))
def test_a_method_that_needs_the_whole_batch_refuses_parts(mini_project: Path, recipe: str) -> None:
    run = config(recipe, accumulate=2)
    with pytest.raises(UserError, match=f"{recipe} .*accumulate: 2"):
        contract.configured(recipe, run.options, run.protocol)
    contract.configured(recipe, run.options, config(recipe).protocol)


def test_which_methods_take_parts() -> None:
    assert {"cmb", "dcc", "u2pl", "pixel_contrast"}.isdisjoint(BY_PARTS)
    assert {"supervised", "fixmatch", "mean_teacher", "cps", "cct"} <= {*BY_PARTS}


def test_recomputing_activations_changes_no_number(mini_project: Path) -> None:
    plain, other = (
        miniature.config("mean_teacher"),
        miniature.config("mean_teacher", checkpoint_activations=True),
    )
    assert plain.digest() == other.digest()
    one = miniature.train(plain)
    for path in (*plain.run.artefacts.glob("*"), *plain.run.checkpoints.glob("*")):
        path.unlink()
    two = miniature.train(other)
    for name, state in one["last"].items():
        assert all(torch.equal(tensor, two["last"][name][key]) for key, tensor in state.items())


# --- two processes ------------------------------------------------------------------------------------------


def gradients_of_parts(rank: int, folder: Path) -> None:
    """Accumulate two parts in each of two processes, and save the gradients that the first one ends with."""
    torch_distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = distributed.replicated(nn.Linear(3, 1))
    images = distributed.own(torch.arange(12.0).view(4, 3))
    for part in range(2):
        with distributed.averaging(model, part == 1):
            loss = model(images[part : part + 1]).square().mean()
        (loss / 2).backward()
    torch.save([each.grad for each in model.parameters()], folder / f"{rank}.pt")
    torch_distributed.destroy_process_group()


def test_processes_average_the_gradients_of_all_parts(tmp_path: Path) -> None:
    multiprocessing.start_processes(gradients_of_parts, args=(tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    model(torch.arange(12.0).view(4, 3)).square().mean().backward()
    for one, two, parameter in zip(first, second, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
        assert torch.equal(one, two)
