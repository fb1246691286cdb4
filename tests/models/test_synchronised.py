from pathlib import Path

import pytest
import torch
from torch import distributed as torch_distributed
from torch import multiprocessing

from semiseg.base import distributed
from semiseg.base.parameters import Network
from semiseg.models.build import new_backbone
from semiseg.models.network import Backbone
from semiseg.models.synchronised import synchronise


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return new_backbone(Network("deeplabv3plus", name, "none", 16, 8))


def trained(module: Backbone) -> dict[str, torch.Tensor]:
    """Return all processes' maps in training mode, the first gradient and the statistics after it."""
    images = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    low, high = module(distributed.own(images))
    (low.square().sum() + high.square().sum()).backward()
    gradient = distributed.summed(next(module.parameters()).grad)
    maps = {"low": distributed.gathered(low), "high": distributed.gathered(high)}
    statistics = {name: value for name, value in module.named_buffers() if "running" in name}
    return {**maps, "gradient": gradient, **statistics}


def share(rank: int, folder: Path, name: str) -> None:
    torch_distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    module = backbone(name)
    synchronise(module, torch.device("cpu"))
    torch.save(trained(module), folder / f"{rank}.pt")
    torch_distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_two_processes_normalise_as_one_does(tmp_path: Path, name: str) -> None:
    multiprocessing.spawn(share, args=(tmp_path, name), nprocs=2)
    expected = trained(backbone(name))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            difference = float((found[key] - value).abs().max())
            assert difference < 1e-4 * max(1, float(value.abs().max())), key


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_one_process_keeps_its_modules(name: str) -> None:
    module = backbone(name)
    before = list(module.modules())
    synchronise(module, torch.device("cpu"))
    assert list(module.modules()) == before
