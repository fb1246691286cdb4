"""Two real processes share rows, sums and draws, with gloo on a CPU."""

from pathlib import Path

import torch
from torch import Tensor, multiprocessing
from torch import distributed as torch_distributed

from semiseg.base import distributed
from semiseg.data.augment import Pixels, classmix, random_scale_crop
from semiseg.losses import cross_entropy
from semiseg.models.layers import Dropout
from semiseg.models.pixel_heads import ClassAttention, MaskedBatchNorm

ROWS = torch.arange(12.0).view(6, 2)  # of the whole batch


def seen_by(rank: int) -> dict[str, Tensor]:
    """Return a process's results for its share of ROWS; the second one holds a third of the labels."""
    rows = distributed.own(ROWS).clone().requires_grad_()
    weights = torch.tensor([1.0, 10.0])[rank]
    (weights * distributed.summed(rows.sum(dim=0)).square().sum()).backward()
    labels = distributed.own(torch.tensor([0, 1, 0, 255, 255, 1]))
    part = distributed.own(ROWS).clone().requires_grad_()
    loss = cross_entropy(part[:, :, None, None], labels[:, None, None], torch.tensor([1.0, 3.0]))
    loss.backward()
    return {
        "own": distributed.own(ROWS),
        "dealt": distributed.dealt(ROWS),
        "gathered": distributed.gathered(rows),
        "following": distributed.following(distributed.own(ROWS)),
        "gradient": rows.grad,
        "loss": distributed.averaged(loss.detach()),
        "loss_gradient": distributed.gathered(part.grad / distributed.size()),
        "nothing": distributed.global_mean(torch.zeros(()), torch.zeros((), dtype=torch.int64)),
        "largest": torch.tensor(distributed.largest(rank)),
    }


def drawn() -> dict[str, Tensor]:
    """Return the global batch after random augmentation and batch norm, for any number of processes."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(3, (4, 8, 8), generator=torch.Generator().manual_seed(2))
    share = Pixels(*map(distributed.own, (images, labels, images[:, 0])))
    torch.manual_seed(0)
    mixed = classmix(share, num_classes=3, probability=0.7, background=None)
    moved = random_scale_crop(mixed, probability=0.8, scale=(0.5, 2.0))
    dropped = Dropout(0.5)(moved.images)
    rows, valid = moved.images.permute(0, 2, 3, 1).flatten(0, 2), moved.labels.flatten() != 255
    norm = MaskedBatchNorm(3)
    normalised = norm(rows, valid)
    attention = ClassAttention(3, 3)
    scores = attention(rows, moved.labels.flatten())
    whole = [*moved, dropped, normalised, scores.detach()]
    return {
        **{str(place): distributed.gathered(each) for place, each in enumerate(whole)},
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "attention_var": attention.running_var,
    }


def apart(rank: int, folder: Path) -> None:
    torch_distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save({**seen_by(rank), "drawn": drawn()}, folder / f"{rank}.pt")
    torch_distributed.destroy_process_group()


def test_two_processes_share_rows_sums_and_draws(tmp_path: Path) -> None:
    multiprocessing.start_processes(apart, args=(tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["own"], ROWS[:3])
    assert torch.equal(second["own"], ROWS[3:])
    assert torch.equal(second["dealt"], ROWS[[1, 3, 5]])
    assert torch.equal(first["following"], ROWS[1:4])
    assert torch.equal(second["following"], ROWS[[4, 5, 0]])
    # by hand: d/d rows of (1 + 10) |s|², s the column sums 30 and 36 of all rows
    gradient = torch.tensor([[11 * 60.0, 11 * 72.0]]).expand(3, 2)
    # weights 1, 3, 1, 0, 0, 3: the log probability of class 0 is that of -1, of class 1 of +1
    below, above = torch.log(torch.tensor(1 + torch.e)), torch.log(torch.tensor(1 + 1 / torch.e))
    whole = ROWS.clone().requires_grad_()
    expected = (2 * below + 6 * above) / 8
    cross_entropy(
        whole[:, :, None, None], torch.tensor([0, 1, 0, 255, 255, 1])[:, None, None], torch.tensor([1.0, 3.0])
    ).backward()
    for each in (first, second):
        assert torch.equal(each["gathered"], ROWS)
        assert torch.equal(each["gradient"], gradient)
        torch.testing.assert_close(each["loss"], expected)
        torch.testing.assert_close(each["loss_gradient"], whole.grad)
        assert each["nothing"] == 0
        assert each["largest"] == 1
    for name, tensor in drawn().items():
        torch.testing.assert_close(first["drawn"][name], tensor, msg=name)
        assert torch.equal(first["drawn"][name], second["drawn"][name])


def test_one_process_has_the_batch_for_itself() -> None:
    rows = ROWS.clone().requires_grad_()
    for same in (distributed.own, distributed.dealt, distributed.gathered, distributed.summed):
        assert torch.equal(same(rows), rows)
    assert not distributed.gathered(rows).requires_grad
    assert torch.equal(distributed.following(rows), rows.roll(-1, dims=0))
    assert distributed.first()
    assert not distributed.agreed(False)
