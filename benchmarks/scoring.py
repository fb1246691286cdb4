"""Measure how fast networks are scored: python -m benchmarks.scoring

Images are random, of the sizes that VOC's validation list has most. "one by one" scores each image alone.
"""

import argparse
import json
import time
from collections.abc import Iterator

import torch

from benchmarks.steps import configured, now
from semiseg.evaluation.score import Image, Scoring
from semiseg.models.build import build

SIZES = [(375, 500)] * 5 + [(500, 375)] * 2 + [(333, 500)]  # height, width


def drawn(count: int) -> Iterator[Image]:
    generator = torch.Generator().manual_seed(0)
    for place in range(count):
        size = SIZES[int(torch.randint(len(SIZES), (1,), generator=generator))]
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        yield str(place), image, torch.randint(21, size, generator=generator, dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = configured("supervised", "bf16", arguments.tiny)
    images = list(drawn(arguments.images))
    network = build(config.protocol.network, 21).to(device, memory_format=torch.channels_last)
    scoring = Scoring.of(config, device)
    for form, alone in (("in batches", None), ("one by one", lambda *seen: None)):
        scoring.count({"student": network}, images[:8], alone)
        began = now(device)
        scoring.count({"student": network}, images, alone)
        rate = round(len(images) / (time.perf_counter() - began), 1)
        print(json.dumps({"scoring": form, "images_per_s": rate}), flush=True)


if __name__ == "__main__":
    main()
