"""A GPU's exhausted memory as an error that a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semiseg.base.errors import UserError


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into a UserError: ``what`` did not fit, and the ``remedy``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"{what} did not fit into the GPU's memory; {remedy}, or free the GPU") from None
