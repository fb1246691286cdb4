"""The stages of the benchmark, as both engines see them: files, resources, and what makes them run again.

A stage runs again when a file that it reads changes, or when its ingredients do: the numbers of params.yaml
and the declared revisions that decide its result. Snakemake compares ingredients as parameters of a rule; DVC
compares the files that ``pipeline/check.py`` writes to data/ingredients/. No digest of source code is taken:
a change of code that alters results raises a REVISION, and tests/test_trajectories.py notices if it does not.
"""

import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from semiseg.base import parameters, paths
from semiseg.base.errors import UserError
from semiseg.base.files import read_json, write_text
from semiseg.base.parameters import LIBRARY, Params, RunConfig, canonical, look_up, revision
from semiseg.data import sources
from semiseg.report import reference

TABLES = ("csv", "md", "tex")  # kinds of files of a grid's table
NAMES = ("dataset", "recipe", "split", "grid", "pretraining")
WILDCARDS = {**dict.fromkeys(NAMES, "[^/]+"), "seed": r"\d+"}  # the Snakefile's, with what they may be


def load(overlay: object) -> Params:
    """Read params.yaml for Snakemake, whose own ``overlay`` of it no stage would see. Raises UserError."""
    if overlay:
        raise UserError(
            "--config and --configfile do not reach the stages, which read params.yaml: change params.yaml "
            "instead"
        )
    return parameters.load()


def escaped(text: str) -> str:
    """Return ``text`` with braces doubled, because Snakemake formats it: a folder's name may hold braces."""
    return text.replace("{", "{{").replace("}", "}}")


def shell_prefix(deployment: Collection[object]) -> str:
    """Return what the Snakefile puts before each command.

    tee must not hide a failed stage. On a signal to the whole job the stage may save its work: the shell
    waits for it, and tee writes until it ends. Without the methods of ``deployment``, which activate an
    environment, this very Python is the first on the path.
    """
    prefix = "set -euo pipefail; trap : INT TERM; tee() {{ trap '' INT TERM; command tee \"$@\"; }}; "
    python = escaped(shlex.quote(str(Path(sys.executable).parent)))
    return prefix if deployment else f"{prefix}PATH={python}:$PATH; "


@dataclasses.dataclass(frozen=True)
class Wildcards:
    """The wildcards of a job; each rule has some of them. Snakemake passes its own object like it."""

    dataset: str = ""
    recipe: str = ""
    split: str = ""
    seed: str = "0"
    grid: str = ""
    pretraining: str = ""


class Stages:
    """Files, resources and ingredients of each stage; the Snakefile's input functions."""

    def __init__(self, params: Params) -> None:
        self.params = params

    @functools.cached_property
    def _published(self) -> reference.Reference:
        return reference.load()

    # --- files ----------------------------------------------------------------------------------------

    def manifest(self, wildcards: Wildcards) -> str:
        """Return the manifest of the dataset of a split."""
        split = look_up(self.params.splits, wildcards.split, "splits")
        return (paths.dataset(split.dataset) / "manifest.json").as_posix()

    def pretraining_manifest(self, wildcards: Wildcards) -> str:
        """Return the manifest of the dataset of a pretraining."""
        recipe = look_up(self.params.pretraining, wildcards.pretraining, "pretraining")
        return (paths.dataset(recipe.dataset) / "manifest.json").as_posix()

    def pretrained(self, wildcards: Wildcards) -> list[str]:
        """Return the files of the pretraining that a run starts from, if it starts from one."""
        found = self.params.pretrained(_run(wildcards))
        return [] if found is None else [found.weights.as_posix(), found.record.as_posix()]

    def records(self, wildcards: Wildcards) -> list[str]:
        """Return the records that a grid's table reads."""
        return [run.metrics.as_posix() for run in self.params.grids[wildcards.grid].runs()]

    def histories(self, wildcards: Wildcards) -> list[str]:
        """Return the short histories that a grid's figures read."""
        return [run.history.as_posix() for run in self.params.grids[wildcards.grid].runs()]

    # --- resources ------------------------------------------------------------------------------------

    def threads(self, wildcards: Wildcards) -> int:
        """Return the CPU threads of one process of a run."""
        return self.params.run(_run(wildcards)).protocol.threads

    def gpus(self, wildcards: Wildcards) -> int:
        """Return the GPUs that train a run together."""
        return self.params.gpus(_run(wildcards))

    def threads_of_all(self, wildcards: Wildcards) -> int:
        """Return the CPU threads of all processes that train a run together."""
        return self.gpus(wildcards) * self.threads(wildcards)

    def threads_of_pretraining(self, wildcards: Wildcards) -> int:
        """Return the CPU threads of all processes that pretrain together."""
        recipe = self.params.pretraining[wildcards.pretraining]
        return recipe.gpus * recipe.threads

    def gpus_of_pretraining(self, wildcards: Wildcards) -> int:
        """Return the GPUs that pretrain together."""
        return self.params.pretraining[wildcards.pretraining].gpus

    # --- ingredients ----------------------------------------------------------------------------------

    def download(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a prepared dataset."""
        dataset = look_up(self.params.datasets, wildcards.dataset, "datasets")
        entry = dataclasses.asdict(dataclasses.replace(dataset, shares={}))
        del entry["evaluate"]  # read when networks are scored
        found = sources.fingerprint(dataset)
        if found is not None:
            entry["fingerprint"] = found  # the state of a user's own folder
        return _text({**entry, "revision": revision(LIBRARY / "data" / "sources" / f"{dataset.source}.py")})

    def split(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a split's lists."""
        split = look_up(self.params.splits, wildcards.split, "splits")
        return _text({"dataset": split.dataset, **dataclasses.asdict(self.params.share(wildcards.split))})

    def pretrain(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a pretraining: its configuration."""
        return _text(json.loads(canonical(self.params.pretraining_config(wildcards.pretraining))))

    def train(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a run: its configuration, the seed apart."""
        return _text(_without_seed(self.params.run(_run(wildcards))))

    def evaluate(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a run's record, the seed apart."""
        config = _without_seed(self.params.run(_run(wildcards)))
        return _text({**config, "evaluation": revision(LIBRARY / "evaluation" / "evaluate.py")})

    def report(self, wildcards: Wildcards) -> str:
        """Return the ingredients of a grid's table and figures, with the published figures they show."""
        grid = look_up(self.params.grids, wildcards.grid, "grids")
        entry = dataclasses.asdict(grid)
        del entry["gpus"]  # changes no result
        return _text({**entry, "published": self._published.ingredients(self.params, wildcards.grid)})


def ingredients(params: Params) -> Iterator[tuple[Path, str]]:
    """Yield the file below data/ingredients/ and its text, for every stage of every grid."""
    stages = Stages(params)
    for dataset in params.datasets:
        yield Path("download", f"{dataset}.json"), stages.download(Wildcards(dataset=dataset))
    pairs = dict.fromkeys((run.recipe, run.split) for grid in params.grids.values() for run in grid.runs())
    for split in dict.fromkeys(split for _, split in pairs):
        yield Path("split", f"{split}.json"), stages.split(Wildcards(split=split))
    for name in params.pretraining:
        yield Path("pretrain", f"{name}.json"), stages.pretrain(Wildcards(pretraining=name))
    for recipe, split in pairs:
        names = Wildcards(recipe=recipe, split=split)
        yield Path("train", recipe, f"{split}.json"), stages.train(names)
        yield Path("evaluate", recipe, f"{split}.json"), stages.evaluate(names)
    for grid in params.grids:
        yield Path("report", f"{grid}.json"), stages.report(Wildcards(grid=grid))


def write_ingredients(params: Params) -> None:
    """Write the files of data/ingredients/ whose text changed; remove those of stages that are gone.

    A file there that is no canonical JSON was not written by this suite, and stays.
    """
    place = paths.DATA / "ingredients"
    texts = {place / file: text for file, text in ingredients(params)}
    for file, text in texts.items():
        if not file.exists() or file.read_bytes() != text.encode():
            write_text(file, text)  # whole: the other engine may start at the same time
    for file in place.rglob("*.json"):
        if file not in texts and _is_ours(file):
            file.unlink(missing_ok=True)


def _is_ours(file: Path) -> bool:
    tree = read_json(file)
    return isinstance(tree, dict) and file.read_bytes() == _text(tree).encode()


def _run(wildcards: Wildcards) -> paths.Run:
    return paths.Run(wildcards.recipe, wildcards.split, int(wildcards.seed))


def _without_seed(config: RunConfig) -> dict[str, Any]:
    """Return a configuration that all seeds share, for DVC has one file for them."""
    tree: dict[str, Any] = json.loads(canonical(config))
    del tree["run"]
    return tree


def _text(tree: dict[str, Any]) -> str:
    """Return canonical JSON: equal ingredients give equal text."""
    return json.dumps(tree, sort_keys=True, indent=1, default=str) + "\n"
