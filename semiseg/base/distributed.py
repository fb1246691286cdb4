"""One run on several processes, each with its share of the global batch.

A process holds a block of neighbouring images of every batch, so the blocks in the processes' order are the
global batch. DistributedDataParallel averages the processes' gradients: a loss here is written so that the
processes' average of it is the loss of the global batch. With one process everything is the identity.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from semiseg.base.errors import EXIT_TRY_AGAIN, UserError

Rows = TypeVar("Rows", Tensor, tuple[str, ...])


def size() -> int:
    """How many processes train this run together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started beside this one: NCCL between GPUs, gloo for the host."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield
    distributed.destroy_process_group()


class Abandoned(UserError):
    """Another process of the run has ended: torchrun, who says why, ends this one too."""

    exit_status = EXIT_TRY_AGAIN


@contextmanager
def ended_by(signals: list[int]) -> Iterator[None]:
    """Raise Abandoned in place of what a collective says of a process that is gone, once SIGTERM has come.

    ``signals`` holds the signals that have come.
    """
    try:
        yield
    except RuntimeError:
        if size() > 1 and signals:
            raise Abandoned("another process of the run has ended") from None
        raise


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through while the others wait, then they do."""
    if not first():
        wait()
    yield
    if first():
        wait()


def replicated(module: nn.Module) -> nn.Module:
    """``module``, or around it what averages its gradients over the processes.

    Its buffers need no broadcast: every process computes the same. Heads that a schedule has not reached yet
    take no gradient.
    """
    if size() == 1:
        return module
    with warnings.catch_warnings():
        # From torch 2.15 on broadcast_buffers has another name, which earlier ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


# --- shares -------------------------------------------------------------------------------------------------


def own(rows: Tensor) -> Tensor:
    """This process's block of the global batch's rows (N, ...); N is a multiple of the processes."""
    if size() == 1:
        return rows
    return rows.unflatten(0, (size(), -1))[rank()]


def uniform(rows: int, *shape: int, device: torch.device) -> Tensor:
    """Draw U(0, 1) for this process's rows of the global batch: (rows, *shape) float32.

    All processes draw the numbers of the whole batch, so these do not depend on how many there are.
    """
    return own(torch.rand(size() * rows, *shape, device=device))


def dealt(rows: Rows) -> Rows:
    """Every process's share of things that all of them hold, dealt out in turn."""
    return rows[rank() :: size()]


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes in their order, without gradient; N is the same in each."""
    if size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def following(rows: Tensor) -> Tensor:
    """For each of this process's rows the next one of the global batch, whose first follows the last."""
    after = gathered(rows[:1]).roll(-1, dims=0)[rank() :][:1]
    return torch.cat((rows[1:], after))


# --- sums ---------------------------------------------------------------------------------------------------


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' values, with a gradient to those of each."""
    if size() == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def averaged(values: Tensor) -> Tensor:
    """The mean of all processes' values, with a gradient to those of each."""
    return summed(values) / size()


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This process's part of Σ total / Σ count: the average of all parts is that mean; zero of nothing."""
    count = summed(count)
    return size() * total / torch.where(count > 0, count, 1)


def largest(number: int) -> int:
    """The largest of all processes' numbers. Their hosts wait for each other, not for the devices."""
    if size() == 1:
        return number
    numbers = torch.tensor(number)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def agreed(wish: bool) -> bool:
    """Whether any process wishes it."""
    return bool(largest(wish))


def wait() -> None:
    """Until every process has come here."""
    agreed(False)


def abandon() -> NoReturn:
    """Wait for the end of another process, which cannot go on: torchrun reports who ends first."""
    wait()  # it never comes
    raise Abandoned("another process of the run has ended")


class _Sum(torch.autograd.Function):
    """Each process's value is in every process's sum: the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total
