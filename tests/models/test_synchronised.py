from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed as torch_distributed
from torch import multiprocessing, nn

from semiseg.base import distributed
from semiseg.base.parameters import Network
from semiseg.models.build import new_backbone
from semiseg.models.network import Backbone
from semiseg.models.synchronised import SplitBatchNorm, split, synchronise


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
    multiprocessing.start_processes(share, args=(tmp_path, name), nprocs=2, start_method="fork")
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


def test_a_split_batch_norm_normalises_each_group_as_a_batch_of_its_own() -> None:
    images, groups = torch.randn(6, 4, 3, 5) * 2 + 1, 3
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    alone = [nn.BatchNorm2d(4) for _ in range(groups)]
    for each in alone:
        each.load_state_dict(norm.state_dict())
    together = SplitBatchNorm(norm, groups)
    images.requires_grad_()
    found = together(images)
    expected = torch.cat([each(part) for each, part in zip(alone, images.chunk(groups), strict=True)])
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(6, 4, 3, 5)
    for one, other in zip(
        torch.autograd.grad(found, [images, norm.weight], upstream),
        torch.autograd.grad(expected, [images, *(each.weight for each in alone)], upstream)[:1],
        strict=False,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(each, name) for each in alone]).mean(dim=0)
        torch.testing.assert_close(getattr(together, name), mean)
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(together.state_dict())
    torch.testing.assert_close(together.eval()(images), plain(images))


def test_one_group_is_batch_norm_with_the_activation_of_timm() -> None:
    images = torch.randn(4, 3, 2, 2)
    for norm in (nn.BatchNorm2d(3), BatchNormAct2d(3)):
        module = nn.Sequential(norm)
        expected = module(images)
        split(module, 1)
        assert isinstance(module[0], SplitBatchNorm)
        torch.testing.assert_close(module(images), expected)
