"""Both engines at once on four fake devices, which real processes claim from the real pool."""

import itertools
import subprocess
import sys
from pathlib import Path

from semiseg.base import parameters
from tests import project
from tests.slow.engines import with_few_grids

IDS = "0,1,2,3"
# Importing the real one takes longer than everything else here.
TORCH = """
__version__ = "0"
OutOfMemoryError = MemoryError
device = str
def set_num_threads(count): pass
def use_deterministic_algorithms(mode): pass
class cpu:
    def _is_avx512_supported(): return False
"""
# A stage that holds a device, and notes from when to when. None goes on before all four are held.
CLAIM = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, "quick")
from semiseg.training import device

with device.claimed(1):
    held, gpu, began = Path(os.environ["HELD"]), os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic()
    (held / gpu).touch()
    while len(list(held.iterdir())) < {len(IDS.split(","))}:
        assert time.monotonic() < began + 120, "four runs at a time were promised"
        time.sleep(0.05)
    time.sleep(0.2)
    with held.with_suffix(".txt").open("a") as notes:
        notes.write(f"{{gpu}} {{began}} {{time.monotonic()}}\\n")
"""


def checkout(place: Path) -> Path:
    """Copy the project to ``place``, where runs only hold a device."""
    with_few_grids(place, ["supervised", "cmb", "cmb-no_attention", "dcc"])
    for stage in ("train", "evaluate"):
        file = place / "pipeline" / f"{stage}.py"
        file.write_text(CLAIM + file.read_text())
    (place / "quick").mkdir()
    (place / "quick" / "torch.py").write_text(TORCH)
    return place


def test_engines_and_checkouts_side_by_side_never_put_two_runs_on_one_device(tmp_path: Path) -> None:
    here, there, held = checkout(tmp_path / "here"), checkout(tmp_path / "there"), tmp_path / "held"
    held.mkdir()
    commands = [
        (here, "snakemake", "demo", "--cores", "8", "--resources", "gpu=4"),
        (here, "dvc", "repro", "pipeline/dvc.yaml:camvid-small"),  # the same checkout, another grid
        (there, "snakemake", "demo", "--cores", "8", "--resources", "gpu=4"),
    ]
    more = {"CUDA_VISIBLE_DEVICES": IDS, "SEMISEG_DEVICE": "cpu", "HELD": str(held), "TMPDIR": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=place,
            env=project.environment(place) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place, *command in commands
    ]
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    notes = [line.split() for line in held.with_suffix(".txt").read_text().splitlines()]
    grids = parameters.load(here / "params.yaml").grids
    runs = sum(len(list(grids[name].runs())) for name in ("demo", "camvid-small", "demo"))
    assert len(notes) == 2 * runs, "each is trained and evaluated"
    assert {gpu for gpu, _, _ in notes} == set(IDS.split(","))
    for gpu in IDS.split(","):
        spans = sorted((float(began), float(ended)) for name, began, ended in notes if name == gpu)
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans)), gpu
