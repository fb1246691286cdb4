"""Measure the last step of a run in one of several forms: python -m benchmarks.steps dcc bf16

Weights and images are random. Prints one line of JSON: milliseconds a step, milliseconds for which the
host is held, and on a GPU the number and time of the kernels and the peak memory. --tiny: a small network
and batch, to try the command on a CPU.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import losses
from semiseg.base import parameters
from semiseg.base.parameters import RunConfig
from semiseg.base.paths import Run
from semiseg.methods import cmb, dcc
from semiseg.methods.contract import Logs
from semiseg.models import teacher
from semiseg.report import throughput
from semiseg.training.step import seed_everything

FORMS = {
    "plain": "fp32, no channels_last, losses as printed, moving average one parameter at a time",
    "fp32": "the suite in single precision",
    "bf16": "the suite under autocast",
    "graph": "bf16, the step captured once as a CUDA graph, which the suite does not do",
    "compiled": "bf16, with backbone and decoder compiled",
    "without": "bf16, with zero for the contrast",
}
SPLIT = "voc-1_8"
WARM_UP = 4


def configured(recipe: str, form: str, tiny: bool) -> RunConfig:
    """Return the run of ``recipe`` on VOC in a form's precision."""
    config = parameters.load().run(Run(recipe, SPLIT, 0))
    precision = "fp32" if form in ("plain", "fp32") else "bf16"
    network = dataclasses.replace(config.protocol.network, weights="none")
    protocol = dataclasses.replace(
        config.protocol, network=network, precision=precision, compile=form == "compiled"
    )
    if tiny:
        protocol = dataclasses.replace(
            protocol,
            network=dataclasses.replace(network, backbone="resnet18", decoder_channels=16),
            geometry=dataclasses.replace(protocol.geometry, base_size=96, crop=64),
            labelled_batch=2,
            unlabelled_batch=2,
            threads=1,
        )
    return dataclasses.replace(config, protocol=protocol)


@torch.no_grad()
def follow_one_by_one(old: nn.Module, new: nn.Module, decay: float, *, buffers: bool = True) -> None:
    """Move a teacher as one writes it first."""
    for ours, theirs in zip(old.parameters(), new.parameters(), strict=True):
        ours.copy_(decay * ours + (1 - decay) * theirs)
    for ours, theirs in zip(old.buffers(), new.buffers(), strict=True) if buffers else ():
        ours.copy_(decay * ours + (1 - decay) * theirs if ours.is_floating_point() else theirs)


def pairwise_memory_loss(*inputs: Tensor | int) -> Tensor:
    """Take the pixels and features that have a class, as the printed equation does, and wait for them."""
    rows, labels, memory, memory_labels, scores, memory_scores, num_classes, _ = inputs
    real, held = labels < num_classes, memory_labels < num_classes
    return losses.pairwise_class_memory_loss(
        rows[real],
        labels[real],
        memory[held],
        memory_labels[held],
        scores[real],
        memory_scores[held],
        num_classes,
    )


def literal_directional_loss(*inputs: Tensor, **options: object) -> Tensor:
    """Score every pair; a method's options are at their defaults here."""
    kept = {name: options[name] for name in ("temperature", "threshold", "valid")}
    return losses.literal_directional_loss(*inputs, **kept)


def nothing(rows: Tensor, *inputs: object, **options: object) -> Tensor:
    return rows.sum() * 0


@contextmanager
def written_as(form: str) -> Iterator[None]:
    """Replace the parts in which a form differs from the suite."""
    replaced: dict[str, Callable[..., Tensor]] = {}
    if form == "plain":
        replaced = {
            "class_memory_loss": pairwise_memory_loss,
            "directional_contrastive_loss": literal_directional_loss,
        }
    elif form == "without":
        replaced = dict.fromkeys(("class_memory_loss", "directional_contrastive_loss"), nothing)
    with ExitStack() as patches:
        for module in (cmb, dcc):
            for name in replaced.keys() & vars(module).keys():
                patches.enter_context(mock.patch.object(module, name, replaced[name]))
        if form == "plain":
            patches.enter_context(mock.patch.object(teacher, "follow", follow_one_by_one))
        yield


def measure(config: RunConfig, form: str, device: torch.device, steps: int) -> dict[str, object]:
    """Return a row of the table."""
    torch.set_num_threads(config.protocol.threads)
    torch.backends.cudnn.benchmark = True
    with written_as(form):
        step, learner, images = throughput.last_step(config, device)
        if form == "plain":
            learner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if form == "graph":
            step = captured(step)
        for seed in range(min(WARM_UP, steps)):
            step(seed)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        held, whole = [], []
        for seed in range(steps):
            began = now(device)
            logs = step(seed)
            held.append(time.perf_counter() - began)
            whole.append(now(device) - began)
        began = now(device)
        for seed in range(steps):
            logs = step(seed)
        seconds = (now(device) - began) / steps
        row: dict[str, object] = {
            "recipe": config.run.recipe,
            "form": form,
            "ms": round(1e3 * seconds, 2),
            "host_ms": round(1e3 * median(held), 2),
            "alone_ms": round(1e3 * median(whole), 2),
            "images_per_s": round(images / seconds, 1),
            "loss": round(float(logs["loss"]), 4),
        }
        if device.type == "cuda":
            row |= kernels(step, device)
            row["peak_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    return row


def captured(step: Callable[[int], Logs]) -> Callable[[int], Logs]:
    """Return the step as one CUDA graph, with the schedule and the host's draws of its capture."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for seed in range(WARM_UP):
            step(seed)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with mock.patch.object(throughput, "seed_everything"), torch.cuda.graph(graph):  # no seeding in a graph
        logs = step(0)

    def replay(seed: int) -> Logs:
        seed_everything(seed, 0)
        graph.replay()
        return logs

    return replay


def kernels(step: Callable[[int], Logs], device: torch.device) -> dict[str, object]:
    """Return the number and the summed milliseconds of a step's kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step(0)
        now(device)
    events = [each for each in seen.events() or [] if str(each.device_type).endswith("CUDA")]
    microseconds = sum(each.time_range.elapsed_us() for each in events)
    return {"kernels": len(events), "kernel_ms": round(microseconds / 1e3, 2)}


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument(
        "form", choices=FORMS, help="; ".join(f"{name}: {said}" for name, said in FORMS.items())
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.form == "graph" and not arguments.device.startswith("cuda"):
        parser.error("a CUDA graph needs a GPU")
    config = configured(arguments.recipe, arguments.form, arguments.tiny)
    print(json.dumps(measure(config, arguments.form, torch.device(arguments.device), arguments.steps)))


if __name__ == "__main__":
    main()
