"""params.yaml -> frozen dataclasses; what it does not know is refused, naming the key.

params.yaml holds five maps (datasets, protocols, splits, recipes, grids) and two of what is fetched
(downloads, families). A run is a recipe on a split with a seed; ``Params.run`` gathers everything that
decides its numbers into one ``RunConfig``, and the hash of that is the run's identity: a record or a
checkpoint with another hash is refused.
"""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.tree import from_tree, read

Options = Mapping[str, Any]
DRAWN = "drawn"  # the family of splits that are drawn from their seed
# A field younger than the first records leaves a run's identity as it was while it holds this value.
LATER_FIELDS = (("family", DRAWN),)
# Fields that no number depends on are of no run's identity.
WITHOUT_EFFECT = frozenset({"checkpoint_minutes", "image_cache_mib"})
BACKBONES = ("resnet18", "resnet50", "resnet101")  # of torchvision, see semiseg/models/backbones.py
T = typing.TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: where it comes from, its classes in the order of their ids, where it is scored."""

    source: str  # a module of semiseg/data/sources/
    classes: tuple[str, ...]
    evaluate: str = "val"  # the list that the headline is computed on: val or test
    background: int | None = None  # the class that ClassMix never pastes (VOC), if there is one
    options: Options = field(default_factory=dict)  # for the source's own Config

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 254:
            raise ValueError(f"classes: {len(self.classes)} given, between 2 and 254 are possible")
        if self.evaluate not in ("val", "test"):
            raise ValueError(f"evaluate: '{self.evaluate}' is neither val nor test")


@dataclass(frozen=True)
class Download:
    """A file that is fetched: from the first of its addresses that gives it whole."""

    addresses: tuple[str, ...] = ()
    size: int | None = None  # bytes
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Family:
    """Lists of labelled images that a paper's authors published: a seed takes the list of its number."""

    address: str  # the folder, at a commit
    sha256: Mapping[str, str]  # of each file, by its path below the address


@dataclass(frozen=True)
class Split:
    """A dataset, the labelled share of its training set, and the protocol its runs are trained under."""

    dataset: str
    protocol: str
    ratio: Fraction  # of the training images that have a mask
    count: int | None = None  # the published number of labelled images; else ceil(ratio x images)
    family: str = DRAWN  # drawn from the seed, or a name of families

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: {self.ratio} is outside (0, 1]")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: {self.count} is not a positive number of images")

    def labelled_count(self, images: int) -> int:
        """How many of ``images`` training images are labelled."""
        return self.count if self.count is not None else math.ceil(self.ratio * images)


@dataclass(frozen=True)
class Network:
    """A segmentation network; see semiseg.models.build."""

    head: str  # a file of semiseg/models/heads/: deeplabv3plus
    backbone: str  # resnet18, resnet50, resnet101
    weights: str  # imagenet, coco, none, or a file's path
    output_stride: int = 16
    decoder_channels: int = 256

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone: there is no '{self.backbone}'; there are {', '.join(BACKBONES)}")
        if self.weights == "coco" and self.backbone != "resnet101":
            raise ValueError(f"weights: coco is there for resnet101, not for {self.backbone}")
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride: {self.output_stride} is neither 8 nor 16")
        if self.decoder_channels < 1:
            raise ValueError(f"decoder_channels: {self.decoder_channels} is not positive")


@dataclass(frozen=True)
class Geometry:
    """How a training image becomes a crop: long side = base_size x U(scale), crop, flip."""

    base_size: int  # pixels, the long side at scale one
    scale: tuple[float, float]
    crop: int  # pixels, the side of the square that the network sees

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} is not a range of positive numbers")
        if self.base_size < 1 or self.crop < 1:
            raise ValueError(f"base_size {self.base_size} and crop {self.crop}: both must be positive")


@dataclass(frozen=True)
class Optimiser:
    """SGD with momentum (Nesterov off) and the poly schedule lr (1 - step / steps)^power."""

    learning_rate: float
    backbone_factor: float = 0.1  # the backbone's learning rate over the head's
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "backbone_factor", "power", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: {value} is not a positive number")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1)")


@dataclass(frozen=True)
class Protocol:
    """Everything a comparison holds equal: network, crops, batches, steps, optimiser, machine settings."""

    network: Network
    geometry: Geometry
    optimiser: Optimiser
    labelled_batch: int
    unlabelled_batch: int
    steps: int
    precision: str = "fp32"  # fp32, or bf16 autocast
    compile: bool = False
    validate_every: int = 1000  # steps
    checkpoint_every: int = 500  # steps
    checkpoint_minutes: float = 15.0  # and whenever the last one is this old
    log_every: int = 50  # steps
    workers: int = 2  # processes that read images, for each stream
    threads: int = 1  # CPU threads of one run; part of the run, for sums depend on it
    image_cache_mib: int = 0  # memory in which a run keeps decoded images for its workers; 0: none are kept
    methods: Mapping[str, Options] = field(default_factory=dict)  # schedules cut short with the steps

    def __post_init__(self) -> None:
        for name in ("labelled_batch", "unlabelled_batch"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: {getattr(self, name)} is fewer than the 2 that batch norm needs")
        for name in ("steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: '{self.precision}' is neither fp32 nor bf16")
        for name in ("validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes: {self.checkpoint_minutes} is not positive")
        for name in ("workers", "image_cache_mib"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")


@dataclass(frozen=True)
class Recipe:
    """A method (a file of semiseg/methods/) with one set of options for its Config."""

    method: str
    options: Options = field(default_factory=dict)
    gpus: int | None = None  # that train a run together; not part of it, for its numbers stay

    def __post_init__(self) -> None:
        _check_gpus(self.gpus)


def _check_gpus(gpus: int | None) -> None:
    if gpus is not None and gpus < 1:
        raise ValueError(f"gpus: {gpus} is not positive")


@dataclass(frozen=True)
class Grid:
    """Recipes x splits x seeds that are run together and read in one table."""

    title: str
    recipes: tuple[str, ...]
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    beside: tuple[str, ...] = ()  # recipes that other grids run on these splits and seeds: first in the table
    waterfall: tuple[str, ...] = ()  # rows in the order in which each adds a part to the one before
    gpus: int | None = None  # that train each of its runs together, unless the recipe says

    def __post_init__(self) -> None:
        for name in ("recipes", "splits", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} must name something, and nothing twice")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"beside: {list(self.beside)}: a recipe stands twice, or among the grid's own")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds: {min(self.seeds)} is negative")
        self._check_waterfall()
        _check_gpus(self.gpus)

    def _check_waterfall(self) -> None:
        chain = self.waterfall
        if len(chain) == 1 or len(set(chain)) < len(chain):
            raise ValueError(f"waterfall: {list(chain)} must name at least two recipes, and none twice")
        for recipe in chain:
            if recipe not in self.rows:
                raise ValueError(
                    f"waterfall: '{recipe}' is no row of the table; its rows are {', '.join(self.rows)}"
                )

    def holds(self, run: paths.Run) -> bool:
        return run.recipe in self.recipes and run.split in self.splits and run.seed in self.seeds

    @property
    def rows(self) -> tuple[str, ...]:
        """The recipes of the grid's table."""
        return (*self.beside, *self.recipes)

    def runs(self) -> list[paths.Run]:
        """Its own: no other grid has them."""
        return self._runs(self.recipes)

    def table(self) -> list[paths.Run]:
        """Those that its table reads: its own, and of other grids those beside."""
        return self._runs(self.rows)

    def _runs(self, recipes: tuple[str, ...]) -> list[paths.Run]:
        return [
            paths.Run(recipe, split, seed)
            for recipe in recipes
            for split in self.splits
            for seed in self.seeds
        ]


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's numbers."""

    run: paths.Run
    dataset: Dataset
    split: Split
    protocol: Protocol  # without the methods' overrides, which are in options already
    method: str
    options: Options  # protocol.methods[method], then the recipe's own

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of this configuration."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


@dataclass(frozen=True)
class Params:
    datasets: Mapping[str, Dataset]
    protocols: Mapping[str, Protocol]
    splits: Mapping[str, Split]
    recipes: Mapping[str, Recipe]
    grids: Mapping[str, Grid]
    downloads: Mapping[str, Download] = field(default_factory=dict)  # by the file's name
    families: Mapping[str, Family] = field(default_factory=dict)

    def run(self, run: paths.Run) -> RunConfig:
        """The configuration of one run. Raises UserError for a recipe or a split that params.yaml lacks."""
        recipe = look_up(self.recipes, run.recipe, "recipes")
        split = look_up(self.splits, run.split, "splits")
        if run.seed < 0:
            raise UserError(f"{run}: a seed is not negative")
        protocol = self.protocols[split.protocol]
        return RunConfig(
            run=run,
            dataset=self.datasets[split.dataset],
            split=split,
            protocol=dataclasses.replace(protocol, methods={}),
            method=recipe.method,
            options={**protocol.methods.get(recipe.method, {}), **recipe.options},
        )

    def grid_of(self, run: paths.Run) -> str:
        """The name of the grid that runs ``run``; one of them does."""
        return next(name for name, grid in self.grids.items() if grid.holds(run))

    def gpus(self, run: paths.Run) -> int:
        """How many GPUs train ``run``: as its recipe says, else its grid, else one.

        Raises UserError if the run's batches cannot be shared out evenly among them.
        """
        grids = [grid.gpus for grid in self.grids.values() if grid.holds(run)]
        asked = [look_up(self.recipes, run.recipe, "recipes").gpus, *grids]
        gpus = next((number for number in asked if number is not None), 1)
        protocol = self.run(run).protocol
        for name in ("labelled_batch", "unlabelled_batch"):
            batch = getattr(protocol, name)
            if batch % gpus:
                raise UserError(
                    f"params.yaml: {run}: gpus: {gpus} cannot share the {name} of {batch} evenly; "
                    "give a divisor of it"
                )
        return gpus


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check ``path``. Raises UserError naming the key that is wrong and what is possible."""
    params: Params = from_tree(Params, read(path), str(path))
    _check_references(params)
    return params


def canonical(config: object) -> str:
    """Canonical JSON of a dataclass (sorted keys, fractions as text): equal configurations, equal text."""
    tree = dataclasses.asdict(config, dict_factory=_of_identity)  # type: ignore[call-overload]
    return json.dumps(tree, sort_keys=True, default=str)


def _of_identity(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(each for each in fields if each[0] not in WITHOUT_EFFECT and each not in LATER_FIELDS)


def look_up(entries: Mapping[str, T], name: str, what: str) -> T:
    """``entries[name]``, or a UserError that lists what there is."""
    if name not in entries:
        raise UserError(
            f"params.yaml: {what}: there is no '{name}'; there are {', '.join(entries) or 'none'}"
        )
    return entries[name]


def _check_references(params: Params) -> None:
    """Every name that params.yaml uses must be one that it defines, or a file of the library."""
    library = Path(__file__).parents[1]
    for name, dataset in params.datasets.items():
        _check_file(library / "data" / "sources", dataset.source, f"datasets: {name}: source")
    for name, split in params.splits.items():
        _check_name(params.datasets, split.dataset, f"splits: {name}: dataset")
        _check_name(params.protocols, split.protocol, f"splits: {name}: protocol")
        if split.family != DRAWN:
            _check_name(params.families, split.family, f"splits: {name}: family")
    for name, protocol in params.protocols.items():
        _check_file(library / "models" / "heads", protocol.network.head, f"protocols: {name}: network: head")
        for method in protocol.methods:
            _check_file(library / "methods", method, f"protocols: {name}: methods")
    for name, recipe in params.recipes.items():
        _check_file(library / "methods", recipe.method, f"recipes: {name}: method")
    for name, grid in params.grids.items():
        for recipe_name in grid.recipes:
            _check_name(params.recipes, recipe_name, f"grids: {name}: recipes")
        for split_name in grid.splits:
            _check_name(params.splits, split_name, f"grids: {name}: splits")
    _check_runs(params.grids)
    for grid in params.grids.values():
        for run in grid.runs():
            if grid.gpus is not None or params.recipes[run.recipe].gpus is not None:
                params.gpus(run)


def _check_runs(grids: Mapping[str, Grid]) -> None:
    """Every run belongs to one grid: two stages of DVC may not own one output."""
    owners: dict[paths.Run, str] = {}
    for name, grid in grids.items():
        for run in grid.runs():
            if run in owners:
                raise UserError(
                    f"params.yaml: grids: {owners[run]} and {name} both run {run}; "
                    f"name {run.recipe} under beside in one of them"
                )
            owners[run] = name
    for name, grid in grids.items():
        for run in grid.table():
            if run not in owners:
                raise UserError(f"params.yaml: grids: {name}: beside: no grid runs {run}")


def _check_name(entries: Mapping[str, object], name: str, key: str) -> None:
    if name not in entries:
        raise UserError(f"params.yaml: {key}: there is no '{name}'; there are {', '.join(entries)}")


def _check_file(folder: Path, name: str, key: str) -> None:
    known = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    if name not in known:
        raise UserError(f"params.yaml: {key}: there is no '{name}'; there are {', '.join(known)}")
