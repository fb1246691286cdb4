"""Check every result under results/runs/ as a pull request is checked, and tell which ones are new."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report import trust

FOLDER = RESULTS / "runs"
FILES = ("metrics.json", "history.csv")  # files of a run
SHA256, COMMIT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
BRANCHES = ("origin/HEAD", "origin/main", "main", "origin/master", "master")  # the first of these is compared


def check(params: Params) -> tuple[dict[Run, Record], list[str]]:
    """Return the records that can be read, and a line for each problem.

    A run of a grid must have the configuration and the data that params.yaml and data/ have now.
    """
    found: dict[Run, Record] = {}
    problems = list(_strays())
    for path in sorted(FOLDER.glob("*/*/*/metrics.json")):
        recipe, split, seed = path.parts[-4:-1]
        try:
            found[Run(recipe, split, int(seed))] = record.read(path)
        except (UserError, ValueError) as error:
            problems.append(str(error) if isinstance(error, UserError) else f"{path}: seed: not a number")
    in_grids = [run for run in found if params.grids_of(run)]
    problems += trust.read(params, in_grids).refused.values()
    for run, each in found.items():
        problems += [f"{run.metrics}: {said}" for said in _incomplete(each)]
        problems += _history(run)
    return found, problems


def _strays() -> Iterator[str]:
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and (path.name not in FILES or len(path.relative_to(FOLDER).parts) != 4):
            yield f"{path}: belongs to no run; {FOLDER}/<recipe>/<split>/<seed>/ holds {' and '.join(FILES)}"


def _incomplete(found: Record) -> Iterator[str]:
    """Yield what a record's provenance lacks."""
    origin = found.provenance
    for name in ("config_sha256", "data_sha256", "labelled_sha256", "labelled_set_sha256"):
        if not SHA256.fullmatch(getattr(origin, name)):
            yield f"provenance: {name}: not a sha256; evaluate the run again"
    config = json.dumps(origin.config, sort_keys=True)
    if hashlib.sha256(config.encode()).hexdigest() != origin.config_sha256:
        yield "provenance: config: does not have the digest config_sha256; evaluate the run again"
    if not COMMIT.fullmatch(origin.revision):
        yield (
            f"provenance: revision: '{origin.revision}' is no commit; train from a clean checkout, so that "
            "others can have the same code"
        )
    if not origin.packages or not origin.device:
        yield "provenance: packages and device: not named; train the run again"
    if not (TIME.fullmatch(origin.started) and TIME.fullmatch(origin.finished)):
        yield "provenance: started and finished: not times in UTC, such as 2026-03-01T10:00:00Z"
    elif origin.started > origin.finished:
        yield "provenance: finished: is before started"


def _history(run: Run) -> Iterator[str]:
    try:
        steps = pd.read_csv(run.history)["step"]
    except (OSError, ValueError, KeyError) as error:
        yield f"{run.history}: not a short history ({type(error).__name__}); evaluate the run again"
        return
    if steps.empty or not steps.is_monotonic_increasing:
        yield f"{run.history}: step: does not rise; evaluate the run again"


def new(found: Mapping[Run, Record]) -> tuple[str, list[str]]:
    """Return the default branch, and a line for each record that is not on it as it is here.

    Raises UserError where git or the branch cannot be obtained.
    """
    for branch in BRANCHES:
        try:
            _git("rev-parse", "--verify", "--quiet", f"{branch}^{{commit}}")
            break
        except (OSError, subprocess.CalledProcessError):
            continue
    else:
        raise UserError(f"no git, or none of the branches {', '.join(BRANCHES)}: fetch the default branch")
    common = _git("merge-base", branch, "HEAD").strip()
    known = set(_git("ls-tree", "-r", "--name-only", "-z", common, "--", str(FOLDER)).split("\0"))
    changed = set(_git("diff", "--name-only", "-z", common, "--", str(FOLDER)).split("\0"))
    lines = []
    for run, each in found.items():
        name = run.metrics.as_posix()
        if name not in known or name in changed:
            state = "changed" if name in known else "new"
            lines.append(
                f"{state}  {run}  mIoU {each.miou:.1%} on {each.evaluated_on}, {each.labelled} labelled, "
                f"{each.provenance.device}"
            )
    removed = sorted(path for path in known & changed if path and not Path(path).exists())
    return branch, [*lines, *(f"removed  {path}" for path in removed)]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
