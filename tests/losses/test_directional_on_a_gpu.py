"""The directional contrast over fake CUDA tensors, which have shapes alone, and on a GPU if there is one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.losses import directional_blocks, directional_contrastive_loss
from tests.losses.literal_directional import COMBINATIONS, Rows, as_type, assert_close, example, reference


class OnTheDevice(TorchDispatchMode):
    """Refuses results on the host; counts operations, and keeps the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += not func.is_view and func.namespace != "prim"
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                read = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
                assert each.is_cuda or not read, f"{func}: the host waits for its result"
                self.elements = max(self.elements, each.numel())
        return result


def on_a_gpu_without_values(rows: Rows, **options: Any) -> OnTheDevice:
    """Run both passes over fake CUDA tensors, which raise where a value or its size is needed."""
    with FakeTensorMode():
        fake = {name: torch.empty(each.shape, dtype=each.dtype, device="cuda") for name, each in rows.items()}
        anchors = fake["anchors"].requires_grad_()
        with OnTheDevice() as device:
            node = directional_contrastive_loss(**fake, **options).grad_fn
            while node.name() != "RowLossesBackward":
                node = node.next_functions[0][0]
            gradient, *_ = node.apply(anchors.new_empty(len(anchors)))  # autograd's own engine wants a GPU
    assert gradient.shape == anchors.shape
    return device


@pytest.mark.parametrize(
    ("dtype", "temperature"), [(torch.float32, 0.1), (torch.float32, 0.01), (torch.float64, 0.1)]
)
@pytest.mark.parametrize("options", COMBINATIONS)
def test_nothing_is_waited_for(options: dict[str, Any], dtype: torch.dtype, temperature: float) -> None:
    rows = as_type(example(n=150, m=400, dim=130), dtype)
    on_a_gpu_without_values(rows, temperature=temperature, **options)


def test_at_the_scale_of_training_a_pass_has_few_operations_and_bounded_memory() -> None:
    """VOC's: 6,400 anchors against 25,600 negatives, in five blocks of 5,242."""
    rows = {
        name: torch.empty(25_600 if name.startswith("negative") else 6_400, *each.shape[1:], dtype=each.dtype)
        for name, each in example(dim=128).items()
    }
    device = on_a_gpu_without_values(as_type(rows, torch.float32))
    assert 0.9 * directional_blocks.ON_A_GPU < device.elements <= directional_blocks.ON_A_GPU
    assert device.operations <= 180


@pytest.mark.parametrize(
    ("waits", "raised"),
    [
        (lambda selected: selected.nonzero(), DynamicOutputShapeException),
        (lambda selected: selected[selected], DynamicOutputShapeException),
        (lambda selected: selected.sum().item(), DataDependentOutputException),
        (lambda selected: selected.cpu(), AssertionError),
    ],
)
def test_a_wait_would_be_found(waits: Any, raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    log_sums = directional_blocks.log_sums
    monkeypatch.setattr(
        directional_blocks, "log_sums", lambda pairs: (waits(pairs.selected), log_sums(pairs))[1]
    )
    with pytest.raises(raised):
        on_a_gpu_without_values(as_type(example(), torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", COMBINATIONS)
def test_there_it_is_the_printed_equation_too(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = example(n=150, m=400, dim=130)
    for elements in (directional_blocks.ON_A_GPU, 150 * 37):
        monkeypatch.setattr(directional_blocks, "ON_A_GPU", elements)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            given = {name: each.cuda() for name, each in as_type(rows, dtype).items()}
            given["anchors"].requires_grad_()
            torch.cuda.set_sync_debug_mode("error")
            try:
                loss = directional_contrastive_loss(**given, **options)
                (gradient,) = torch.autograd.grad(loss, given["anchors"])
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found = float(loss.detach()), gradient.cpu()
            assert_close(found, reference(as_type(rows, dtype), **options), tolerance)
