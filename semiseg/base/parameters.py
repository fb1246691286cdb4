"""Read params.yaml into frozen dataclasses, and refuse unknown keys and bad values by name.

params.yaml has the keys default, grids, recipes, protocols, starts, pretraining and datasets, as
docs/design.md explains them. A run is a recipe under a protocol, with a share of labelled images and a seed.
``Params.run`` gathers all that decides its numbers into a ``RunConfig``, whose digest is the run's identity.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from semiseg.base import checks, paths, weights
from semiseg.base.backbone import ChosenBackbone
from semiseg.base.checks import MOST, SEEDS
from semiseg.base.errors import UserError
from semiseg.base.names import check_names
from semiseg.base.pretraining import Pretraining
from semiseg.base.tree import fraction, from_tree, read

LIBRARY = Path(__file__).parents[1]
SHARED = ("contract", "common")  # files of semiseg/methods/ and semiseg/pretraining/ that are not methods
DRAWN = "drawn"  # lists of labelled images that are drawn from the seed
FULL = "full"  # the share of all images
# Fields that cannot change a result, and the path of the weights, whose content has a digest; never hashed.
WITHOUT_EFFECT = frozenset(
    {
        "checkpoint_activations",
        "checkpoint_minutes",
        "gpus",
        "image_cache_mib",
        "judge_pseudo_labels",
        "weights",
        "workers",
    }
)

Options = Mapping[str, Any]
T = typing.TypeVar("T")


@dataclass(frozen=True)
class Share:
    """A labelled share of a training list, and where its lists of labelled images come from."""

    ratio: Fraction | None = None  # share of the images with a mask; by default the share's name
    count: int | None = None  # a published number of labelled images; else ceil(ratio * images)
    lists: str = DRAWN  # drawn from the seed, or a family of semiseg/data/lists.py

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: {self.ratio} is outside (0, 1]")
        checks.at_least(self, 1, "count")

    def labelled_count(self, images: int) -> int:
        """Return how many of ``images`` training images are labelled."""
        if self.count is not None:
            return self.count
        assert self.ratio is not None
        return math.ceil(self.ratio * images)


@dataclass(frozen=True)
class Dataset:
    """A dataset: its source, the classes in the order of their ids, the list it is scored on, its shares."""

    source: str  # a file of semiseg/data/sources/
    classes: tuple[str, ...]
    evaluate: str = "val"  # the list of the headline: val or test
    background: int | None = None  # the class that ClassMix never pastes, if there is one
    options: Options = field(default_factory=dict)  # options of the source's Config
    shares: Mapping[str, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 254:
            raise ValueError(f"classes: {len(self.classes)} given, between 2 and 254 are possible")
        twice = [name for name in self.classes if self.classes.count(name) > 1]
        if twice:
            raise ValueError(f"classes: '{twice[0]}' stands twice")
        checks.one_of(self, "evaluate", "val", "test")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise ValueError(f"background: {self.background} is no class; ids run to {len(self.classes) - 1}")
        shares = {name: _named_share(name, share) for name, share in self.shares.items()}
        object.__setattr__(self, "shares", shares)


def _named_share(name: str, share: Share) -> Share:
    """Complete a share by its name: "1/8", "full", or a count such as "92"."""
    if share.ratio is not None:
        return dataclasses.replace(share, count=int(name)) if name.isdecimal() else share
    try:
        ratio = Fraction(1) if name == FULL else fraction(name)
    except ValueError:
        raise ValueError(f"shares: {name}: give its ratio, for the name is none") from None
    if not 0 < ratio <= 1:
        raise ValueError(f"shares: {name}: give its ratio in (0, 1]")
    return dataclasses.replace(share, ratio=ratio)


@dataclass(frozen=True)
class Network(ChosenBackbone):
    """A segmentation network; semiseg.models.build makes it."""

    head: str  # a file of semiseg/models/heads/
    backbone: str
    weights: str
    output_stride: int
    decoder_channels: int

    def __post_init__(self) -> None:
        self.check_backbone()
        checks.within(self, 1, MOST, "decoder_channels")


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a training crop: long side base_size * U(scale), a random crop, a flip."""

    base_size: int  # pixels, the long side at scale one
    scale: tuple[float, float]
    crop: int  # pixels, the side of the square that the network sees

    def __post_init__(self) -> None:
        checks.positive(self, "scale")
        checks.ascending(self, "scale")
        checks.within(self, 1, MOST, "base_size", "crop")
        if self.base_size * self.scale[1] > MOST:
            raise ValueError(f"scale: {self.scale[1]} times base_size is more than {MOST} pixels")


@dataclass(frozen=True)
class Optimiser:
    """SGD with momentum, or AdamW, and the poly schedule lr (1 - step / steps)^power."""

    name: str  # sgd or adamw
    learning_rate: float
    backbone_factor: float  # the backbone's learning rate as a multiple of learning_rate
    head_factor: float  # everything else's
    layer_decay: float  # rate of a layer of the backbone as a multiple of the next layer's; 1: the same
    momentum: float  # AdamW: the decay of the gradient's average, beta_1 (beta_2 is 0.999)
    weight_decay: float
    power: float
    clip_norm: float | None  # the largest norm of the gradient; null: unlimited

    def __post_init__(self) -> None:
        checks.one_of(self, "name", "sgd", "adamw")
        checks.positive(
            self, "learning_rate", "backbone_factor", "head_factor", "layer_decay", "power", "clip_norm"
        )
        if self.layer_decay > 1:
            raise ValueError(f"layer_decay: {self.layer_decay} is outside (0, 1]")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1)")


@dataclass(frozen=True)
class Evaluation:
    """How a network is scored: whole images at their own size, at a long side, or by sliding windows."""

    long_side: int | None  # pixels; logits are brought back to the mask's size. null: the image's own size
    window: int | None  # pixels, the side of a sliding window. null: whole images
    stride: float | None  # step of the window, as a share of its side
    flip: bool  # average with the mirrored image's prediction
    # batches of labelled crops from which batch norm's statistics are estimated anew. null: as trained
    recalibrate: int | None

    def __post_init__(self) -> None:
        checks.within(self, 1, MOST, "long_side", "window", "recalibrate")
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride: give both, or neither")
        if self.stride is not None and not 0 < self.stride <= 1:
            raise ValueError(f"stride: {self.stride} is outside (0, 1]")


@dataclass(frozen=True)
class Protocol:
    """All that a comparison holds equal: data, network, crops, batches, steps, optimiser and scoring."""

    dataset: str
    network: Network
    geometry: Geometry
    optimiser: Optimiser
    evaluation: Evaluation
    labelled_batch: int
    unlabelled_batch: int
    accumulate: int  # parts of a batch that are trained one after the other; batch norm sees a part
    checkpoint_activations: bool  # compute the backbone's activations again instead of keeping them
    steps: int
    precision: str  # fp32, or bf16 (autocast)
    compile: bool
    validate_every: int  # steps
    checkpoint_minutes: float  # between two checkpoints; 0: one after every step
    log_every: int  # steps
    judge_pseudo_labels: bool  # log them against the masks of unlabelled images, which nothing else reads
    workers: int  # processes that read images, for each of the two streams
    threads: int  # CPU threads of one run; sums depend on it
    image_cache_mib: int  # memory for decoded images that the workers share; 0: keep none
    methods: Mapping[str, Options]  # options that a method takes under this protocol

    def __post_init__(self) -> None:
        checks.within(self, 2, MOST, "labelled_batch", "unlabelled_batch")  # batch norm needs two
        checks.within(self, 1, MOST, "accumulate", "threads")
        checks.at_least(self, 1, "steps", "validate_every", "log_every")
        checks.within(self, 0, MOST, "workers")
        checks.at_least(self, 0, "checkpoint_minutes", "image_cache_mib")
        checks.one_of(self, "precision", "fp32", "bf16")
        for name in ("labelled_batch", "unlabelled_batch"):
            images, rest = divmod(getattr(self, name), self.accumulate)
            if rest or images < 2:
                raise ValueError(
                    f"accumulate: {self.accumulate} parts of {name}: {getattr(self, name)} are not equal, or "
                    "have fewer than two images"
                )
        if self.compile and self.checkpoint_activations:
            raise ValueError("compile and checkpoint_activations: set one of them to false")
        patch = self.network.patch or 1
        for key, side in (
            ("geometry: crop", self.geometry.crop),
            ("evaluation: window", self.evaluation.window),
        ):
            if side is not None and side % patch:
                raise ValueError(f"{key}: {side} is no multiple of the backbone's patch of {patch} pixels")


@dataclass(frozen=True)
class Recipe:
    """A method (a file of semiseg/methods/) with one set of options for its Config.

    A recipe may change fields of the protocol's network and scoring, to follow a release or to measure what
    such a field does; its row is then not held equal to the others in them.
    """

    method: str
    options: Options = field(default_factory=dict)
    network: Options = field(default_factory=dict)
    evaluation: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Recipes x shares x seeds under one protocol, read in one table.

    A paper's table may span several protocols; it names the shares of each instead.
    """

    title: str
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: str | None = None
    shares: tuple[str, ...] = ()
    protocols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # shares by protocol
    waterfall: tuple[str, ...] = ()  # recipes in the order in which each adds a part to the one before
    gpus: int = 1  # that train each of its runs together

    def __post_init__(self) -> None:
        if (self.protocol is None) == (not self.protocols) or bool(self.shares) == bool(self.protocols):
            raise ValueError("give protocol and shares, or protocols with the shares of each")
        for name in ("recipes", "splits", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} must not be empty or repeat itself")
        checks.within(self, 0, SEEDS - 1, "seeds")
        chain = self.waterfall
        if len(chain) == 1 or len(set(chain)) < len(chain):
            raise ValueError(f"waterfall: {list(chain)} must name at least two recipes, and none twice")
        for recipe in chain:
            if recipe not in self.recipes:
                raise ValueError(f"waterfall: '{recipe}' is not one of recipes: {', '.join(self.recipes)}")
        checks.within(self, 1, MOST, "gpus")

    @property
    def shares_by_protocol(self) -> Mapping[str, tuple[str, ...]]:
        return self.protocols if self.protocol is None else {self.protocol: self.shares}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the grid's splits, by protocol and share."""
        return tuple(
            split_name(protocol, share)
            for protocol, shares in self.shares_by_protocol.items()
            for share in shares
        )

    def runs(self) -> list[paths.Run]:
        """Return every run of the table, by recipe, split and seed."""
        return [
            paths.Run(recipe, split, seed)
            for recipe in self.recipes
            for split in self.splits
            for seed in self.seeds
        ]


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that is negative or so large that it names no file."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed: {seed} is outside [0, {SEEDS - 1}]")


def split_name(protocol: str, share: str) -> str:
    """Return the name of a split: "voc-1_8" for the share 1/8 under the protocol voc."""
    return f"{protocol}-{share.replace('/', '_')}"


@dataclass(frozen=True)
class Setting:
    """A share of a dataset under a protocol, by their names."""

    dataset: str
    protocol: str
    share: str


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's numbers, but for the images and the labelled list themselves."""

    run: paths.Run
    protocol_name: str
    protocol: Protocol  # without its methods' options, which are in ``options``
    dataset: Dataset  # without its shares
    share_name: str
    share: Share
    method: str
    options: Options  # the protocol's for the method, then the recipe's own
    weights_sha256: str  # see semiseg.base.weights.digest; of a pretraining its identity
    revisions: Mapping[str, int]  # the declared REVISION of loop, method and source

    @property
    def dataset_name(self) -> str:
        return self.protocol.dataset

    def digest(self) -> str:
        """Return the run's identity: sha256 (hex) of ``canonical(self)``."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


@dataclass(frozen=True)
class PretrainingConfig:
    """All that decides what a pretraining gives, but for the images themselves."""

    run: paths.PretrainingRun
    recipe: Pretraining
    dataset: Dataset  # its shares apart
    weights_sha256: str  # of those to start from, see semiseg.base.weights.digest
    revisions: Mapping[str, int]  # the declared REVISION of loop, method and source

    def digest(self) -> str:
        """Return the pretraining's identity: sha256 (hex) of ``canonical(self)``."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


@dataclass(frozen=True)
class Params:
    """params.yaml, checked."""

    default: tuple[str, ...]
    grids: Mapping[str, Grid]
    recipes: Mapping[str, Recipe]
    protocols: Mapping[str, Protocol]
    datasets: Mapping[str, Dataset]
    pretraining: Mapping[str, Pretraining] = field(default_factory=dict)

    @functools.cached_property
    def splits(self) -> Mapping[str, Setting]:
        """Every split that a protocol and its dataset allow, by name.

        Raises UserError if two have one name.
        """
        return _by_name(
            "protocols and shares",
            (
                (split_name(name, share), Setting(protocol.dataset, name, share))
                for name, protocol in self.protocols.items()
                for share in self.datasets[protocol.dataset].shares
            ),
        )

    def share(self, split: str) -> Share:
        """Return the share of a split. Raises UserError for an unknown name."""
        found = look_up(self.splits, split, "splits")
        return self.datasets[found.dataset].shares[found.share]

    def run(self, run: paths.Run) -> RunConfig:
        """Return the configuration of one run. Raises UserError for an unknown recipe or split."""
        recipe = look_up(self.recipes, run.recipe, "recipes")
        split = look_up(self.splits, run.split, "splits")
        check_seed(run.seed)
        protocol, dataset = self._protocol(run.recipe, split.protocol), self.datasets[split.dataset]
        files = {
            "loop": LIBRARY / "training" / "loop.py",
            "method": LIBRARY / "methods" / f"{recipe.method}.py",
            "source": LIBRARY / "data" / "sources" / f"{dataset.source}.py",
        }
        return RunConfig(
            run=run,
            protocol_name=split.protocol,
            protocol=dataclasses.replace(protocol, methods={}),
            dataset=dataclasses.replace(dataset, shares={}),
            share_name=split.share,
            share=self.share(run.split),
            method=recipe.method,
            options={**protocol.methods.get(recipe.method, {}), **recipe.options},
            weights_sha256=self._weights_digest(protocol.network),
            revisions={name: revision(file) for name, file in files.items()},
        )

    def pretraining_config(self, name: str) -> PretrainingConfig:
        """Return the configuration of a pretraining. Raises UserError for an unknown name."""
        recipe = look_up(self.pretraining, name, "pretraining")
        dataset = self.datasets[recipe.dataset]
        files = {
            "loop": LIBRARY / "training" / "pretrain.py",
            "method": LIBRARY / "pretraining" / f"{recipe.method}.py",
            "source": LIBRARY / "data" / "sources" / f"{dataset.source}.py",
        }
        return PretrainingConfig(
            run=paths.PretrainingRun(name),
            recipe=recipe,
            dataset=dataclasses.replace(dataset, shares={}),
            weights_sha256=weights.digest(recipe.weights, recipe.backbone),
            revisions={name: revision(file) for name, file in files.items()},
        )

    def pretrained(self, run: paths.Run) -> paths.PretrainingRun | None:
        """Return the pretraining that ``run`` starts from, if it starts from one."""
        protocol = self.protocols[self.splits[run.split].protocol]
        return paths.PretrainingRun.named(
            str(self.recipes[run.recipe].network.get("weights", protocol.network.weights))
        )

    def start(self, weights: str) -> str:
        """Return in words what a network with ``weights`` starts from: "simclr after random weights"."""
        named = paths.PretrainingRun.named(weights)
        if named is None:
            return "random weights" if weights == "none" else weights
        recipe = look_up(self.pretraining, named.name, "pretraining")
        return f"{recipe.method} after {self.start(recipe.weights)}"

    def _weights_digest(self, network: Network) -> str:
        """Return what identifies a network's weights. Raises UserError for those of another backbone."""
        named = paths.PretrainingRun.named(network.weights)
        if named is None:
            return weights.digest(network.weights, network.backbone)
        pretrained = self.pretraining_config(named.name)
        if pretrained.recipe.backbone != network.backbone:
            raise UserError(
                f"params.yaml: network: weights: {named} is a {pretrained.recipe.backbone}, not a "
                f"{network.backbone}; pretrain that backbone, or change the network's"
            )
        return pretrained.digest()

    def _protocol(self, recipe_name: str, protocol_name: str) -> Protocol:
        """Return a protocol with the fields that the recipe changes."""
        recipe, protocol = self.recipes[recipe_name], self.protocols[protocol_name]
        key = f"params.yaml: recipes: {recipe_name}"
        network = _changed(protocol.network, recipe.network, f"{key}: network")
        evaluation = _changed(protocol.evaluation, recipe.evaluation, f"{key}: evaluation")
        try:
            return dataclasses.replace(protocol, network=network, evaluation=evaluation)
        except ValueError as error:
            raise UserError(f"{key} (under protocols: {protocol_name}): {error}") from None

    def grids_of(self, run: paths.Run) -> list[str]:
        """Return the names of the grids whose tables show ``run``."""
        return [
            name
            for name, grid in self.grids.items()
            if run.recipe in grid.recipes and run.split in grid.splits and run.seed in grid.seeds
        ]

    def gpus(self, run: paths.Run) -> int:
        """Return how many GPUs train ``run``: as many as the first of its grids says.

        Raises UserError if the run's batches cannot be shared out evenly among them.
        """
        gpus = next((self.grids[name].gpus for name in self.grids_of(run)), 1)
        protocol = self.run(run).protocol
        for name in ("labelled_batch", "unlabelled_batch"):
            if getattr(protocol, name) // protocol.accumulate % gpus:
                raise UserError(
                    f"params.yaml: {run}: gpus: {gpus} cannot share the {name} of {getattr(protocol, name)} "
                    f"evenly, in {protocol.accumulate} part(s); give a divisor of it"
                )
        return gpus


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check ``path``. Raises UserError naming the key that is wrong and what is possible."""
    tree = read(path)
    if isinstance(tree, Mapping) and isinstance(tree.get("recipes"), Mapping):
        tree = {**tree, "recipes": _by_name("recipes", _recipes(tree["recipes"], f"{path}: recipes"))}
    if isinstance(tree, Mapping) and "starts" in tree:
        rest = {key: value for key, value in tree.items() if key != "starts"}
        protocols = _by_name(
            "protocols and starts", _protocols(rest.get("protocols"), tree["starts"], str(path))
        )
        tree = {**rest, "protocols": protocols}
    params: Params = from_tree(Params, tree, str(path))
    _check_references(params)
    return params


def _recipes(tree: Mapping[Any, Any], key: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield each recipe by name: a method by its own, a variant as "<method>-<variant>".

    An entry with the keys ``method`` and ``options`` is a recipe with a name of its own. Among the options of
    a variant, ``network`` and ``evaluation`` stand for the recipe's changes of the protocol.
    """
    for name, entry in tree.items():
        if not isinstance(entry, Mapping):
            raise UserError(f"{key}: {name}: expected a map of variants, found {entry!r}")
        if isinstance(entry.get("method"), str):
            yield str(name), dict(entry)
            continue
        yield str(name), {"method": str(name)}
        for variant, options in entry.items():
            if not isinstance(options, Mapping):
                raise UserError(f"{key}: {name}: {variant}: expected a map of options, found {options!r}")
            own = {kind: options[kind] for kind in ("network", "evaluation") if kind in options}
            rest = {option: value for option, value in options.items() if option not in own}
            yield f"{name}-{variant}", {"method": str(name), "options": rest, **own}


def _protocols(protocols: Any, starts: Any, key: str) -> Iterable[tuple[str, Any]]:
    """Yield each protocol by name, and each again from the weights of its ``starts``, as "<name>_<start>"."""
    if not isinstance(protocols, Mapping) or not isinstance(starts, Mapping):
        raise UserError(f"{key}: protocols and starts: expected maps of names")
    yield from ((str(name), protocol) for name, protocol in protocols.items())
    for name, weights_by_start in starts.items():
        protocol = protocols.get(name)
        if not isinstance(protocol, Mapping) or not isinstance(protocol.get("network"), Mapping):
            raise UserError(f"{key}: starts: there is no protocol {name!r} with a network")
        if not isinstance(weights_by_start, Mapping):
            raise UserError(f"{key}: starts: {name}: expected a map of weights, found {weights_by_start!r}")
        for start, chosen in weights_by_start.items():
            yield f"{name}_{start}", {**protocol, "network": {**protocol["network"], "weights": chosen}}


def _by_name(key: str, entries: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return ``entries`` as a map, but refuse two of one name."""
    found: dict[str, T] = {}
    for name, entry in entries:
        if name in found:
            raise UserError(f"params.yaml: {key}: two give the name '{name}'; rename one of them")
        found[name] = entry
    return found


def _changed(config: T, changes: Options, key: str) -> T:
    """Return a dataclass with other values of some fields, checked as params.yaml's are."""
    if not changes:
        return config
    changed: T = from_tree(type(config), {**vars(config), **changes}, key)
    return changed


def canonical(config: object) -> str:
    """Return canonical JSON of a dataclass, without fields that cannot change a result.

    Keys are sorted and fractions are text, so that equal configurations give equal text.
    """
    tree = dataclasses.asdict(config, dict_factory=_with_effect)  # type: ignore[call-overload]
    return json.dumps(tree, sort_keys=True, default=str)


def _with_effect(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in WITHOUT_EFFECT}


def look_up(entries: Mapping[str, T], name: str, what: str) -> T:
    """Return ``entries[name]``, or raise a UserError that lists the entries."""
    if name not in entries:
        raise UserError(
            f"params.yaml: {what}: there is no '{name}'; there are {', '.join(entries) or 'none'}"
        )
    return entries[name]


@functools.cache
def revision(file: Path) -> int:
    """Return the REVISION that a module declares, without importing it."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "REVISION"
            and isinstance(node.value, ast.Constant)
        ):
            return int(str(node.value.value))
    raise ValueError(f"{file}: declares no REVISION")


def files_of(*place: str) -> list[str]:
    """Return the names of the modules in a folder of the library, without private and shared ones."""
    folder = LIBRARY.joinpath(*place)
    names = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return [name for name in names if place not in (("methods",), ("pretraining",)) or name not in SHARED]


def _check_references(params: Params) -> None:
    """Refuse a name that cannot be one, and one that is used but neither defined nor in the library."""
    for name, dataset in params.datasets.items():
        _check_known(dataset.source, files_of("data", "sources"), f"datasets: {name}: source")
    for name, protocol in params.protocols.items():
        key = f"protocols: {name}"
        _check_known(protocol.dataset, params.datasets, f"{key}: dataset")
        _check_known(protocol.network.head, files_of("models", "heads"), f"{key}: network: head")
        for method in protocol.methods:
            _check_known(method, files_of("methods"), f"{key}: methods")
    for name, recipe in params.recipes.items():
        _check_known(recipe.method, files_of("methods"), f"recipes: {name}")
        if "head" in recipe.network:
            _check_known(
                recipe.network["head"], files_of("models", "heads"), f"recipes: {name}: network: head"
            )
    for name, pretraining in params.pretraining.items():
        key = f"pretraining: {name}"
        _check_known(pretraining.method, files_of("pretraining"), f"{key}: method")
        _check_known(pretraining.dataset, params.datasets, f"{key}: dataset")
    networks = {f"protocols: {name}": vars(each.network) for name, each in params.protocols.items()}
    networks |= {f"recipes: {name}": dict(each.network) for name, each in params.recipes.items()}
    for key, network in networks.items():
        named = paths.PretrainingRun.named(str(network.get("weights", "none")))
        if named is not None:
            _check_known(named.name, params.pretraining, f"{key}: network: weights: {named}")
    for kind in ("datasets", "pretraining", "protocols", "recipes", "grids", "splits"):
        check_names(kind, getattr(params, kind))
    for name, grid in params.grids.items():
        for recipe_name in grid.recipes:
            _check_known(recipe_name, params.recipes, f"grids: {name}: recipes")
        for protocol_name, shares in grid.shares_by_protocol.items():
            _check_known(protocol_name, params.protocols, f"grids: {name}: protocol")
            known = params.datasets[params.protocols[protocol_name].dataset].shares
            for share in shares:
                _check_known(share, known, f"grids: {name}: shares")
        for run in grid.runs() if grid.gpus > 1 else ():
            params.gpus(run)
    for name in params.default:
        _check_known(name, params.grids, "default")


def _check_known(name: str, known: Iterable[str], key: str) -> None:
    if name not in known:
        raise UserError(f"params.yaml: {key}: there is no '{name}'; there are {', '.join(known) or 'none'}")
