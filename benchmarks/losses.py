"""Measure the cost of the contrastive losses beside their literal form: python -m benchmarks.losses.

Each case runs in a process of its own, so that its peak memory is its own: on the CPU the growth of the
process's resident set over its inputs, on a GPU the allocator's peak over the inputs. Nothing is asserted.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semiseg.losses import class_memory_loss, directional_contrastive_loss

MIB = 2**20
Step = tuple[Callable[[], Tensor], list[Tensor]]
"""A forward pass over prepared inputs that returns the loss, and the inputs that take a gradient."""


# --- CMB: class-wise memory -----------------------------------------------------------------------------


def class_memory(device: torch.device, literal: bool) -> Step:
    """Return the case of N = 52,488 pixels against M = 21 x 256 memory features of 256 numbers."""
    n, num_classes, per_class, dim = 52_488, 21, 256, 256
    torch.manual_seed(0)
    predictions = torch.randn(n, dim, device=device, requires_grad=True)
    labels = torch.randint(num_classes, (n,), device=device)
    memory = torch.randn(num_classes * per_class, dim, device=device)
    memory_labels = torch.arange(num_classes, device=device).repeat_interleave(per_class)
    scores = torch.rand(n, device=device, requires_grad=True)
    memory_scores = torch.rand(len(memory), device=device, requires_grad=True)
    function = pairwise_class_memory_loss if literal else class_memory_loss
    inputs = (predictions, labels, memory, memory_labels, scores, memory_scores)
    return lambda: function(*inputs, num_classes), [predictions, scores, memory_scores]


def pairwise_class_memory_loss(
    predictions: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    prediction_scores: Tensor,
    memory_scores: Tensor,
    num_classes: int,
) -> Tensor:
    """Return the same loss as printed: the weighted distance of all pairs, a mean over those of one class."""
    member = labels == torch.arange(num_classes, device=labels.device)[:, None]  # (C, N)
    kept = memory_labels == torch.arange(num_classes, device=labels.device)[:, None]  # (C, M)
    weights = _mean_one(prediction_scores, labels, member)
    memory_weights = _mean_one(memory_scores, memory_labels, kept)
    distances = 1 - normalize(predictions, dim=1) @ normalize(memory, dim=1).T  # (N, M)
    weighted = distances * weights[:, None] * memory_weights[None, :]
    same = labels[:, None] == memory_labels[None, :]
    pairs = (member.sum(dim=1) * kept.sum(dim=1)).clamp(min=1)[labels]
    return (torch.where(same, weighted, 0).sum(dim=1) / pairs).sum() / num_classes


def _mean_one(scores: Tensor, labels: Tensor, member: Tensor) -> Tensor:
    means = torch.where(member, scores, 0).sum(dim=1) / member.sum(dim=1).clamp(min=1)
    return scores / means[labels]


# --- DCC: directional contrast --------------------------------------------------------------------------

SIZES = [(n, m) for n in (6_400, 12_800) for m in (25_600, 51_200)]
FORMS: dict[str, Callable[..., Tensor]] = {"in blocks": directional_contrastive_loss}


def directional(device: torch.device, n: int, m: int, form: str) -> Step:
    """Return the case of N positions, half of them selected, against M negatives of 128 numbers."""
    torch.manual_seed(0)
    anchors, positives, negatives = (
        normalize(torch.randn(rows, 128, device=device), dim=1) for rows in (n, n, m)
    )
    anchors.requires_grad_()
    confidences = [0.75 + 0.25 * torch.rand(n, device=device) for _ in range(2)]
    labels, negative_labels = (torch.randint(21, (rows,), device=device) for rows in (n, m))
    inputs = (anchors, positives, *confidences, labels, negatives, negative_labels)
    return lambda: FORMS[form](*inputs), [anchors]


def literal_directional_loss(
    anchors: Tensor,
    positives: Tensor,
    anchor_confidence: Tensor,
    positive_confidence: Tensor,
    anchor_labels: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    *,
    temperature: float = 0.1,
    threshold: float = 0.75,
    valid: Tensor | None = None,
) -> Tensor:
    """The same loss as printed: all N x M scores, and then the masks."""
    positive = torch.exp((anchors * positives).sum(dim=1) / temperature)
    others = torch.exp(anchors @ negatives.T / temperature)  # (N, M)
    others = (others * (anchor_labels[:, None] != negative_labels)).sum(dim=1)
    mask = (anchor_confidence < positive_confidence) & (positive_confidence > threshold)
    overlap = torch.ones_like(mask) if valid is None else valid
    return -(mask * overlap * torch.log(positive / (positive + others))).sum() / overlap.sum()


FORMS["all pairs"] = literal_directional_loss


# --- measuring ------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[torch.device], Step]] = {
    "class_memory | segment sums": lambda device: class_memory(device, literal=False),
    "class_memory | all pairs": lambda device: class_memory(device, literal=True),
    **{
        f"directional, N = {n:,}, M = {m:,} | {form}": partial(directional, n=n, m=m, form=form)
        for n, m in SIZES
        for form in FORMS
    },
}


def measure(case: str, device: torch.device, repeats: int) -> str:
    """Return a row of the table: loss, fastest milliseconds forward and backward, peak memory."""
    forward_pass, leaves = CASES[case](device)
    warm = torch.ones(8, 8, device=device, requires_grad=True)  # loads the libraries before memory is counted
    torch.autograd.grad((warm @ warm.double().float()).sum(), warm)
    baseline = _memory(device)
    forward, backward, loss = [], [], torch.zeros(())
    for _ in range(repeats):
        began = _now(device)
        loss = forward_pass()
        middle = _now(device)
        torch.autograd.grad(loss, leaves)
        forward.append(middle - began)
        backward.append(_now(device) - middle)
    peak = (_peak(device) - baseline) / MIB
    milliseconds = f"{1e3 * min(forward):.1f} | {1e3 * min(backward):.1f}"
    return f"| {case} | {milliseconds} | {peak:,.0f} | {loss.item():.6f} |"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> float:
    """Return the bytes in use now, from which the peak counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return f"{model}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name starts with this")
    parser.add_argument("--case", choices=CASES, help="measure this one here, and print its row")
    parser.add_argument("--device", help="this one alone; else the CPU and, where there is one, the GPU")
    parser.add_argument("--repeats", type=int, default=5, help="of which the fastest counts")
    arguments = parser.parse_args()
    if arguments.case:
        print(measure(arguments.case, torch.device(arguments.device or "cpu"), arguments.repeats))
        return
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in [arguments.device] if arguments.device else here:
        tabulate(torch.device(device), arguments.only, arguments.repeats)


def tabulate(device: torch.device, only: str, repeats: int) -> None:
    """Print the table of the cases whose name starts with ``only``, each measured in a process of its own."""
    print(f"{device_name(device)}; torch {torch.__version__}\n")
    print("| loss | form | forward, ms | backward, ms | peak memory, MiB | value |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        if case.startswith(only):
            command = [sys.executable, "-m", "benchmarks.losses", "--case", case]
            command += ["--device", str(device), "--repeats", str(repeats)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(result.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
