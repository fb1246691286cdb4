"""Find operations that wait for the device, which a training step must not do."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Records operations whose result's shape or value the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2"):
            self.found.add(name)
        return func(*args, **(kwargs or {}))
