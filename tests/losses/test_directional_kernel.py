import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
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

from semiseg.base.errors import UserError
from semiseg.losses import directional_contrastive_loss
from tests.losses.literal_directional import COMBINATIONS, Rows, as_type, example

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_the_kernel_is_the_printed_equation(device: str) -> None:
    """On the CPU by Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/losses/kernel_checks.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1" if device == "cpu" else "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("capability", "sums", "given"), [(80, "fp32", False), (90, "fp32", True), (90, "fp64", True)]
)
def test_the_kernels_compile_for_gpus_that_are_not_here(
    capability: int, sums: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without and with labels and validity; the interpreter passes what the compiler refuses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semiseg.losses import directional_kernel as kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"order": "*i64", "count": "*i64", "labels": "*i64", "negative_labels": "*i64"}
    types |= {"negative_valid": "*i1", "negatives": "*fp32", "num_negatives": "i32"}
    for each in (kernel.log_sums_kernel, kernel.mean_negatives_kernel):
        constants: dict[str, int | None] = {"DIM": 256, "WIDTH": kernel.WIDTH, "ROWS": kernel.ROWS}
        constants |= {"COLUMNS": kernel.COLUMNS, "STEP": kernel.STEP}
        if not given:
            constants |= {"labels": None, "negative_valid": None}
        names = each.arg_names
        constants = {name: value for name, value in constants.items() if name in names}
        signature = {
            name: "constexpr" if name in constants else types.get(name, f"*{sums}") for name in names
        }
        compiled = triton.compile(
            ASTSource(each, signature, constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 48 * 1024  # bytes; every GPU has as many


class OnTheDevice(TorchDispatchMode):
    """Refuses results on the host, and keeps the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                read = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
                assert each.is_cuda or not read, f"{func}: the host waits for its result"
                self.elements = max(self.elements, each.numel())
        return result


class Launches:
    """Stands in for a kernel and records its launches."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **_: self.made.append((grid, arguments))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    from semiseg.losses import directional_kernel

    found = Launches()
    for name in ("log_sums_kernel", "mean_negatives_kernel"):
        monkeypatch.setattr(directional_kernel, name, found)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    return found


def on_a_gpu_without_values(rows: Rows, **options: Any) -> OnTheDevice:
    """Run both passes over fake CUDA tensors, which raise where a value or its size is needed."""
    with FakeTensorMode(), OnTheDevice() as device:
        fake = {name: torch.empty(each.shape, dtype=each.dtype, device="cuda") for name, each in rows.items()}
        anchors = fake["anchors"].requires_grad_()
        device.elements = 0
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
def test_on_a_gpu_nothing_is_waited_for(
    options: dict[str, Any], dtype: torch.dtype, temperature: float, launches: Launches
) -> None:
    rows = as_type(example(n=150, m=400, dim=130), dtype)
    device = on_a_gpu_without_values(rows, temperature=temperature, **options)
    assert device.elements == 150 * 130  # the gradients: no N × M
    # A program takes 64 rows and 128 dimensions, however many rows are selected.
    assert [grid for grid, _ in launches.made] == [(3,), (3, 2)]
    for extra, (_, arguments) in enumerate(launches.made):
        assert sum(isinstance(each, Tensor) for each in arguments) == 6 + extra + options["negative_sampling"]


@pytest.mark.parametrize(
    ("waits", "raised"),
    [
        (lambda selected: selected.nonzero(), DynamicOutputShapeException),
        (lambda selected: selected[selected], DynamicOutputShapeException),
        (lambda selected: selected.sum().item(), DataDependentOutputException),
        (lambda selected: selected.cpu(), AssertionError),
    ],
)
def test_a_wait_would_be_found(
    waits: Any, raised: type[Exception], launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    from semiseg.losses import directional_kernel

    log_sums = directional_kernel.log_sums
    monkeypatch.setattr(
        directional_kernel, "log_sums", lambda pairs: (waits(pairs.selected), log_sums(pairs))[1]
    )
    with pytest.raises(raised):
        on_a_gpu_without_values(as_type(example(), torch.float32))


def test_without_triton_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "semiseg.losses.directional_kernel", raising=False)
    monkeypatch.delattr("semiseg.losses.directional_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match="pip install triton"):
        on_a_gpu_without_values(as_type(example(), torch.float32))
