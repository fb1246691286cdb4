"""One run on several processes, each with its share of the global batch.

Each process holds a block of neighbouring images of every batch; in the order of the processes the blocks
are the global batch. DistributedDataParallel averages the processes' gradients, so every loss is written such
that its average over the processes is the loss of the global batch. With one process nothing changes.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from semiseg.base.errors import EXIT_TRY_AGAIN, UserError

Rows = TypeVar("Rows", Tensor, tuple[str, ...])


def size() -> int:
    """Return how many processes train this run together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first() -> bool:
    """Return whether this process is the one that writes files."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between hosts."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield
    distributed.destroy_process_group()


class Abandoned(UserError):
    """Another process of the run has ended; torchrun says why, and ends this one too."""

    exit_status = EXIT_TRY_AGAIN


@contextmanager
def ended_by(signals: list[int]) -> Iterator[None]:
    """Replace the error of a collective whose partner is gone by Abandoned, once SIGTERM has come.

    ``signals`` holds the numbers of the signals that have come.
    """
    try:
        yield
    except RuntimeError:
        if size() > 1 and signals:
            raise Abandoned("another process of the run has ended") from None
        raise


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process run the block while the others wait, then the others."""
    if not first():
        wait()
    yield
    if first():
        wait()


def replicated(module: nn.Module) -> nn.Module:
    """Return ``module``, wrapped so that its gradients are averaged if there are several processes.

    Buffers need no broadcast, because every process computes the same. Heads that a schedule has not reached
    yet take no gradient.
    """
    if size() == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.15 renamed broadcast_buffers; earlier versions do not know the new name.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


def averaging(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average the processes' gradients behind the ``last`` part of a batch only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    several: AbstractContextManager[None] = model.no_sync()
    return several


# --- shares -------------------------------------------------------------------------------------------------


def own(rows: Tensor) -> Tensor:
    """Return this process's block of the global batch's rows (N, ...); N is a multiple of the processes."""
    if size() == 1:
        return rows
    return rows.unflatten(0, (size(), -1))[rank()]


def uniform(rows: int, *shape: int, device: torch.device) -> Tensor:
    """Draw U(0, 1) for this process's rows of the global batch: (rows, *shape) float32.

    All processes draw the numbers of the whole batch, so these do not depend on how many there are.
    """
    return own(torch.rand(size() * rows, *shape, device=device))


def dealt(rows: Rows) -> Rows:
    """Return this process's share of rows that all processes hold, dealt out in turn."""
    return rows[rank() :: size()]


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """Return the rows (N, ...) of all processes in order, without gradient; N is the same in each."""
    if size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def joined_rows(rows: Tensor) -> Tensor:
    """Return the rows (N, D) of all processes in order, with a gradient to each; N is the same in each."""
    return summed(pad(rows, (0, 0, rank() * len(rows), (size() - 1 - rank()) * len(rows))))


def following(rows: Tensor) -> Tensor:
    """Return, for each row of this process, the next row of the global batch; the first follows the last."""
    after = gathered(rows[:1]).roll(-1, dims=0)[rank() :][:1]
    return torch.cat((rows[1:], after))


# --- sums ---------------------------------------------------------------------------------------------------


def summed(values: Tensor) -> Tensor:
    """Return the sum of all processes' values, with a gradient to each of them."""
    if size() == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def averaged(values: Tensor) -> Tensor:
    """Return the mean of all processes' values, with a gradient to each of them."""
    return summed(values) / size()


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return this process's part of Σ total / Σ count, whose average over processes is that mean.

    Returns zero if Σ count is zero.
    """
    count = summed(count)
    return size() * total / torch.where(count > 0, count, 1)


def largest(number: int) -> int:
    """Return the largest of all processes' numbers. The hosts wait for each other, not for the devices."""
    if size() == 1:
        return number
    numbers = torch.tensor(number)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def agreed(wish: bool) -> bool:
    """Return whether any process wishes it."""
    return bool(largest(wish))


def wait() -> None:
    """Wait until every process has come here."""
    agreed(False)


def abandon() -> NoReturn:
    """Wait to be ended by torchrun, which reports the process that failed first."""
    wait()  # the failed process never comes here
    raise Abandoned("another process of the run has ended")


class _Sum(torch.autograd.Function):
    """A differentiable all-reduce: every value is in every sum, so the gradients are summed too.

    torch 2.15 deprecates its own, torch.distributed.nn.functional.all_reduce, without a public successor.
    """

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
