"""Measure what a run will take from a few of its steps on random images; read no dataset, write nothing."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.data import default_collate

from semiseg.base import provenance
from semiseg.base.parameters import Params, RunConfig
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.methods import contract
from semiseg.methods.contract import Config, Logs, Method, Task, View
from semiseg.report.plan import Estimate
from semiseg.training.batches import Batch, on_device
from semiseg.training.device import claimed
from semiseg.training.step import new_learner, new_optimiser, poly, seed_everything, take_step

WARM_UP, STEPS = 3, 5
LEAD = 6.0  # between a pixel's two highest logits: among 21 classes, a confidence of 0.95 and more


def measured(params: Params, configs: Iterable[RunConfig]) -> dict[tuple[str, str], Estimate]:
    """Return an estimate for each of ``configs``, by recipe and protocol, on the device a run would claim.

    Raises UserError for too small a GPU.
    """
    with claimed(threads=1) as device:
        return {
            (each.run.recipe, each.protocol_name): measure(each, device, params.gpus(each.run))
            for each in configs
        }


def on_one_card(config: RunConfig, gpus: int) -> RunConfig:
    """Return a run with the part of its batches that one of ``gpus`` trains; at least two images each."""
    protocol = config.protocol
    own = {name: max(2, getattr(protocol, name) // gpus) for name in ("labelled_batch", "unlabelled_batch")}
    return dataclasses.replace(config, protocol=dataclasses.replace(protocol, **own))


def measure(config: RunConfig, device: torch.device, gpus: int = 1) -> Estimate:
    """Train the last step of a run a few times, from random weights: by then every loss takes part.

    Of a run on several ``gpus`` one's share is trained; their exchange is not measured.
    """
    config = on_one_card(config, gpus)
    print(f"measuring {config.run.recipe} under {config.protocol_name}", file=sys.stderr)
    protocol = config.protocol
    torch.set_num_threads(protocol.threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step, learner, images = last_step(config, device)
    seconds = _seconds(step, device)
    memory = ""
    share = f", one of {gpus} GPUs' share" if gpus > 1 else ""
    if device.type == "cuda":
        memory = f" ({torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB)"
    return Estimate(
        seconds=gpus * protocol.steps * seconds,
        size=2 * _size(learner),  # model.pt: at the last and at the best step
        basis=f"{STEPS} steps of random images measured now, {images / seconds:.2f} images/s, "
        f"{provenance.device_name(device)}{memory}{share}; reading not included",
    )


def last_step(config: RunConfig, device: torch.device) -> tuple[Callable[[int], Logs], Method, int]:
    """Return a function that trains a run's last step again, its learner, and a step's number of images.

    The weights and the batch are random; the function takes the seed of the step's own random numbers.
    """
    protocol, last = config.protocol, config.protocol.steps - 1
    seed_everything(config.run.seed, -1)
    options = contract.configured(config.method, config.options, protocol)
    view = contract.views(config.method, options, protocol.geometry)
    labelled, unlabelled = random_batch(config, view, device)
    learner = untrained_learner(config, options, device)
    _make_confident(learner, labelled.images)
    optimiser = new_optimiser(learner, protocol.optimiser)
    poly(optimiser, protocol, last)

    def step(seed: int) -> Logs:
        seed_everything(seed, last)
        return take_step(config, learner, learner, optimiser, labelled, unlabelled, last)

    return step, learner, protocol.labelled_batch + (protocol.unlabelled_batch if view else 0)


def random_batch(config: RunConfig, view: View | None, device: torch.device) -> Batch:
    """Return a step's batch of noise, cropped as the method's images are."""
    protocol = config.protocol
    generator = torch.Generator().manual_seed(config.run.seed)
    # A crop is cut from an image scaled to base_size, whatever its own size; most photographs are 4:3.
    size = (round(0.75 * protocol.geometry.base_size), protocol.geometry.base_size)

    def noise(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator, dtype=torch.uint8)

    pairs = [
        random_scale_crop_flip(
            noise(256, 3, *size), noise(len(config.dataset.classes), *size), protocol.geometry, generator
        )
        for _ in range(protocol.labelled_batch)
    ]
    images, masks = default_collate(pairs)
    views = view and default_collate(
        [view(noise(256, 3, *size), generator) for _ in range(protocol.unlabelled_batch)]
    )
    return on_device(images, masks, views, device)


def untrained_learner(config: RunConfig, options: Config, device: torch.device) -> Method:
    """Return a learner with random weights, which need no file, and a split as large as a batch."""
    protocol = config.protocol
    network = dataclasses.replace(protocol.network, weights="none")
    config = dataclasses.replace(config, protocol=dataclasses.replace(protocol, network=network))
    task = Task(protocol.steps, protocol.labelled_batch, config.dataset.background, protocol.unlabelled_batch)
    return new_learner(config, options, task, device)


@torch.no_grad()
def _make_confident(learner: Method, images: Tensor) -> None:
    """Scale the classifiers' logits until half of the pixels have the LEAD.

    The cost of DCC's contrast depends on what its masks select: nothing in a random network's predictions.
    """
    for network in learner.networks().values():
        first, second = network(images).topk(2, dim=1).values.unbind(dim=1)
        for parameter in network.classifier.parameters():
            parameter.mul_(LEAD / (first - second).median())


def _seconds(step: Callable[[int], Logs], device: torch.device) -> float:
    """Return the mean seconds of STEPS steps, after WARM_UP others."""
    for repetition in range(WARM_UP):
        step(repetition)
    began = _now(device)
    for repetition in range(WARM_UP, WARM_UP + STEPS):
        step(repetition)
    return (_now(device) - began) / STEPS


def _now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _size(learner: Method) -> int:
    """Return the bytes of the scored networks' states."""
    states = [network.state_dict() for network in learner.networks().values()]
    return sum(tensor.nbytes for state in states for tensor in state.values())
