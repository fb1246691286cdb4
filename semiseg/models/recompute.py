"""Compute activations a second time in the backward pass instead of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(backbone: nn.Module) -> None:
    """Let each block of ``backbone``, a member of its outermost sequences, keep only its inputs.

    A single layer is no block: it would save nothing, and may change its input in place, as ReLU does.
    Results stay the same to the bit: the second pass draws the same random numbers, and batch norm's running
    statistics take the first pass alone. A block computes its forward pass twice.
    """
    for child in backbone.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            for block in child:
                if next(block.children(), None) is None:
                    continue
                again = partial(_on_copies, block.forward)
                contexts = partial(_contexts, block)
                block.forward = partial(checkpoint, again, use_reentrant=False, context_fn=contexts)
        else:
            recompute(child)


def _on_copies(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """Call ``forward`` on copies of its lists of tensors, which HRNet's blocks change in place."""
    return forward(*(list(each) if isinstance(each, list) else each for each in inputs), **named)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second pass."""
    return nullcontext(), _spare_buffers(block)


@contextmanager
def _spare_buffers(block: nn.Module) -> Iterator[None]:
    """Redirect the writes of ``block`` to its buffers into copies, which are dropped."""
    kept = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
