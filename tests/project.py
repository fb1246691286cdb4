"""A copy of the project in a folder of its own, and both engines started in it as a user would."""

import gc
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
FILES = (
    "Snakefile",
    "dvc.yaml",
    ".dvc/config",
    ".dvc/plots/miou.json",
    ".dvc/plots/loss.json",
    ".dvcignore",
    ".gitignore",
    "params.yaml",
    "environment.yaml",
)
FOLDERS = ("pipeline", "profiles", "semiseg")
STUBBED = ("download", "split", "train", "evaluate", "report")

# A stage that only writes its outputs: the text of each is its command. The file `data_holds` stands for
# the content of prepared data, and the file `fail` names a stage that fails.
STUB = """
import sys
from pathlib import Path

stage, names = Path(sys.argv[0]).stem, sys.argv[1:]
place = "/".join(names)
outputs = {
    "download": [f"data/{place}/manifest.json"],
    "split": [f"data/splits/{place}/labelled.txt", f"data/splits/{place}/unlabelled.txt"],
    "train": [f"runs/{place}/model.pt", f"runs/{place}/history.csv"],
    "evaluate": [f"results/runs/{place}/metrics.json", f"results/runs/{place}/history.csv"],
    "report": [
        *(f"results/tables/{place}.{kind}" for kind in ("csv", "md", "tex")),
        f"results/metrics/{place}/split/recipe.json",
        f"results/figures/{place}/miou.png",
        *(f"results/plots/{kind}/{place}.csv" for kind in ("miou", "loss")),
    ],
}
if Path("fail").exists() and stage == Path("fail").read_text():
    sys.exit(f"{stage} fails")
held = Path("data_holds").read_text() if stage == "download" and Path("data_holds").exists() else ""
for output in map(Path, outputs[stage]):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text('{"command": "%s"}' % " ".join([*sys.argv, held]))
"""


# What pipeline/check.py notes, without what it refuses: neither engine need wait for torch.
CHECK_STUB = """
from semiseg import stages
from semiseg.base import parameters

stages.write_ingredients(parameters.load())
"""


def copy(place: Path, *, stubs: bool = False) -> Path:
    """Copy the project's files to ``place``; with ``stubs``, its stages only write their outputs."""
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    for name in FOLDERS:
        # Compiled modules are copied too, but not those that another process is writing.
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("dvc.lock", "*.pyc.*"))
    if stubs:
        for stage in STUBBED:
            (place / "pipeline" / f"{stage}.py").write_text(STUB)
        (place / "pipeline" / "check.py").write_text(CHECK_STUB)
    subprocess.run(["git", "init", "--quiet"], cwd=place, check=True)
    return place


def git(place: Path, *command: str) -> None:
    author = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *author, *command], cwd=place, check=True, capture_output=True)


def edit(file: Path, old: str, new: str) -> None:
    """Replace ``old``, which must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def environment(place: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PWD": str(place),  # as a shell sets it
        "PYTHONPATH": str(place),  # the copy's own semiseg
        "DVC_SITE_CACHE_DIR": str(place / ".dvc" / "tmp" / "site"),
        "OMP_NUM_THREADS": "1",
    }


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with ``command`` in ``place``; its errors are in its output."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=place,
        env=environment(place),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def stage(name: str, *arguments: str) -> None:
    """Run a stage in this process, in the working directory, as its command starts it."""
    file = str(ROOT / "pipeline" / f"{name}.py")
    try:
        with patch.object(sys, "argv", [file, *arguments]):
            runpy.run_path(file, run_name="__main__")
    finally:
        gc.unfreeze()  # this process goes on to other tests


def succeed(place: Path, *command: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = run(place, *command)
    assert done.returncode == 0, done.stdout
    return done.stdout


def snakemake_commands(output: str) -> list[str]:
    """Return the stages' commands that ``snakemake --printshellcmds`` prints, without the part that logs."""
    return re.findall(r"^Shell command: (python .*?) 2>&1 \| tee -i \S+$", output, re.MULTILINE)


def dvc_commands(output: str) -> list[str]:
    """Return the stages' commands that ``dvc repro`` prints."""
    return re.findall(r"^> (python .*)$", output, re.MULTILINE)
