"""Two processes that share each batch pretrain as one does: gathered negatives, batch norm, queues."""

from pathlib import Path

import torch
from torch import distributed as torch_distributed
from torch import multiprocessing

from semiseg.base import distributed
from semiseg.models.synchronised import synchronise
from semiseg.training.step import seed_everything
from tests.pretraining import recipes

STEPS = 3
States = dict[str, dict[str, torch.Tensor]]


def trained() -> States:
    """Take a few steps of each method, and return its state and its losses, averaged over the processes."""
    torch.use_deterministic_algorithms(True)
    return {method: steps(method) for method in recipes.METHODS}


def steps(method: str) -> dict[str, torch.Tensor]:
    learner = recipes.learner(method)
    synchronise(learner, torch.device("cpu"))
    model = distributed.replicated(learner)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        seed_everything(0, step)
        views = {name: distributed.own(each) for name, each in recipes.views(8, seed=step).items()}
        loss, logs = model(views, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learner.after_step(step)
        losses.append(distributed.averaged(torch.stack([loss.detach(), *logs.values()])))
    counters = [name for name in learner.state_dict() if name.endswith("num_batches_tracked")]
    state = {name: each for name, each in learner.state_dict().items() if name not in counters}
    return {**state, "logs": torch.stack(losses)}


def share(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch_distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    torch.save(trained(), folder / f"{rank}.pt")
    torch_distributed.destroy_process_group()


def test_two_processes_pretrain_as_one_does(tmp_path: Path) -> None:
    multiprocessing.start_processes(share, args=(tmp_path,), nprocs=2, start_method="fork")
    expected = trained()
    for rank in range(2):
        found: States = torch.load(tmp_path / f"{rank}.pt")
        for method, state in expected.items():
            assert found[method].keys() == state.keys()
            for name, value in state.items():
                torch.testing.assert_close(
                    found[method][name],
                    value,
                    rtol=1e-3,
                    atol=1e-5,
                    msg=lambda said, place=(method, name): f"{place}: {said}",
                )
