"""docs/tutorial.md as a newcomer follows it: every command on the page, in its order, on tiny images.

The run is cut to one recipe and two steps once it stands in params.yaml.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests import project
from tests.project import ROOT

IMAGES = 20
SIDE = 32
SHORTER = {  # lines of params.yaml that cost time
    "steps: 200": "steps: 2",
    "validate_every: 100": "validate_every: 2",
    "recipes: [supervised, fixmatch]": "recipes: [fixmatch]",
}


def photographs(folder: Path) -> None:
    """Write images of a bright sky above darker ground, their masks, and one image without a mask."""
    generator = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(IMAGES):
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[generator.integers(8, 24) :] = 1
        pixels = np.array([[130, 170, 230], [90, 110, 60]])[mask] + generator.normal(0, 12, (SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{number}.jpg")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    Image.new("RGB", (SIDE, SIDE)).save(folder / "images/unlabelled.jpg")


def environment_of_its_own(place: Path) -> None:
    """Make .venv as `make` leaves it, of the Python that runs the tests."""
    (place / ".venv/bin").mkdir(parents=True)
    for name in ("python", "snakemake"):
        program = Path(sys.executable).with_name(name)
        (place / ".venv/bin" / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (place / ".venv/bin" / name).chmod(0o755)
    (place / ".venv/bin/activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name in ("constraints.txt", "pyproject.toml", ".venv/.ready"):
        (place / name).touch()


def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorial.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    place = project.copy(tmp_path / "suite")
    (place / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    environment_of_its_own(place)
    photographs(tmp_path / "mine")
    before = (place / "params.yaml").read_text()
    said = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=place,
            env=project.environment(place) | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        said.append(done.stdout)
        written = (place / "params.yaml").read_text()
        assert (written == before) == (len(said) == 1)
        for long, short in SHORTER.items():
            written = written.replace(f"{long}\n", f"{short}\n")
        (place / "params.yaml").write_text(written)
    look, _, table, _, plan = said
    assert "21 images" in look
    assert "1 images have no mask" in look
    assert re.search(r"^\| fixmatch +\| +\d", table, re.MULTILINE)
    assert (place / "results/report.html").is_file()
    assert len(list((place / "predictions").glob("*.png"))) == IMAGES + 2  # the unlabelled one, the legend
    assert len(list((place / "predictions").glob("*.overlay.jpg"))) == IMAGES + 1
    assert "Runs: 0 done" in plan
