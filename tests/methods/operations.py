"""Count the operations of a step: on a GPU each is a kernel that the host must launch."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts operations that compute something; views of a tensor do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.namespace != "prim"
        return func(*args, **(kwargs or {}))
