"""params.yaml is read strictly, and a run's identity is exactly what decides its numbers."""

import copy
import dataclasses
import re
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Grid, Network, Params, RunConfig, Share
from semiseg.base.paths import Run
from tests import miniature
from tests.pretraining import recipes
from tests.project import ROOT

Tree = dict[str, Any]

RUN = Run("supervised", "short-1_8", 0)
TREE: Tree = {
    "default": ["demo"],
    "grids": {
        "demo": {
            "title": "Demo",
            "protocol": "short",
            "shares": ["1/8"],
            "recipes": ["supervised"],
            "seeds": [0, 1],
        }
    },
    "recipes": {"supervised": {}},
    "protocols": {"short": {**miniature.PROTOCOL, "dataset": "shapes", "methods": {}}},
    "datasets": {
        "shapes": {"source": "shapes", "classes": ["background", "disc"], "shares": {"1/8": {}, "full": {}}}
    },
}
OWN_SIZE: Tree = miniature.PROTOCOL["evaluation"]
GONE = object()


def read(folder: Path, tree: object) -> Params:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return parameters.load(path)


def changed(*changes: tuple[str, object]) -> Tree:
    """Return TREE with values, each at the keys "a.b.c"; GONE removes the key."""
    tree = copy.deepcopy(TREE)
    for keys, value in changes:
        *way, last = keys.split(".")
        place = tree
        for key in way:
            place = place.setdefault(key, {})
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    return tree


# --- a good file --------------------------------------------------------------------------------------------


def test_a_good_file_becomes_typed_values(tmp_path: Path) -> None:
    params = read(tmp_path, TREE)
    protocol = params.protocols["short"]
    assert protocol.optimiser.weight_decay == 1e-4
    assert protocol.geometry.scale == (0.75, 1.5)
    assert params.share("short-1_8").ratio == Fraction(1, 8)
    assert list(map(str, params.grids["demo"].runs())) == ["supervised/short-1_8/0", "supervised/short-1_8/1"]
    assert params.default == ("demo",)


def test_a_split_is_named_by_protocol_and_share(tmp_path: Path) -> None:
    params = read(tmp_path, changed(("protocols.other", TREE["protocols"]["short"])))
    assert list(params.splits) == ["short-1_8", "short-full", "other-1_8", "other-full"]
    assert params.splits["other-full"] == parameters.Setting("shapes", "other", "full")
    assert parameters.split_name("a-b", "1/8_mine") == "a-b-1_8_mine"


def test_two_splits_of_one_name_are_refused(tmp_path: Path) -> None:
    tree = changed(("protocols.short-1", TREE["protocols"]["short"]))
    tree["datasets"]["shapes"]["shares"] = {"1-2": {"ratio": "1/2"}, "2": {"ratio": "1/2"}}
    tree["grids"]["demo"]["shares"] = ["2"]
    with pytest.raises(UserError, match="short-1-2"):
        read(tmp_path, tree)


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    tree = changed(("recipes.cmb", {"weak": {}}), ("recipes.cmb-weak", {"method": "dcc"}))
    with pytest.raises(UserError, match=r"recipes: .*'cmb-weak'"):
        read(tmp_path, tree)


def test_a_grid_names_one_protocol_or_the_shares_of_several(tmp_path: Path) -> None:
    tree = changed(("protocols.other", TREE["protocols"]["short"]))
    tree["grids"]["wide"] = {
        "title": "Wide",
        "protocols": {"short": ["1/8", "full"], "other": ["full"]},
        "recipes": ["supervised"],
        "seeds": [3],
    }
    grids = read(tmp_path, tree).grids
    assert grids["demo"].splits == ("short-1_8",)
    assert grids["wide"].splits == ("short-1_8", "short-full", "other-full")
    assert grids["wide"].shares_by_protocol == {"short": ("1/8", "full"), "other": ("full",)}
    assert len(grids["wide"].runs()) == 3


def test_variants_of_a_method_are_recipes_under_their_own_names(tmp_path: Path) -> None:
    tree = changed(("recipes.cmb", {"weak": {"pseudo_weight": 0}, "bare": {}}))
    tree["recipes"]["mine"] = {"method": "cmb", "options": {"dim": 8}}
    tree["recipes"]["yours"] = {"method": "dcc"}
    recipes = read(tmp_path, tree).recipes
    assert {name: (each.method, each.options) for name, each in recipes.items()} == {
        "supervised": ("supervised", {}),
        "cmb": ("cmb", {}),
        "cmb-weak": ("cmb", {"pseudo_weight": 0}),
        "cmb-bare": ("cmb", {}),
        "mine": ("cmb", {"dim": 8}),
        "yours": ("dcc", {}),
    }


def test_a_recipe_changes_fields_of_the_network_and_the_scoring_for_itself_alone(tmp_path: Path) -> None:
    variant = {"dim": 8, "network": {"head": "deeplabv2"}, "evaluation": {"recalibrate": 3}}
    params = read(tmp_path, changed(("recipes.cmb", {"own": variant})))
    plain, own = (params.run(Run(recipe, "short-1_8", 0)) for recipe in ("cmb", "cmb-own"))
    assert own.options == {"dim": 8}
    assert own.protocol.network == dataclasses.replace(plain.protocol.network, head="deeplabv2")
    assert own.protocol.evaluation == dataclasses.replace(plain.protocol.evaluation, recalibrate=3)
    assert plain.protocol == dataclasses.replace(params.protocols["short"], methods={})


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("network", {"depth": 5}, "recipes: cmb-own: network: .*depth"),
        ("network", {"output_stride": 4}, "recipes: cmb-own: network: output_stride"),
        ("evaluation", {"recalibrate": 1.5}, "recipes: cmb-own: evaluation: recalibrate"),
        (
            "network",  # whose patch does not divide the crop
            {
                "head": "dpt",
                "backbone": "timm:vit_small_patch14_dinov2",
                "output_stride": 14,
                "weights": "none",
            },
            r"recipes: cmb-own \(under protocols: short\): geometry: crop",
        ),
    ],
)
def test_a_field_that_a_recipe_cannot_change_is_refused(
    tmp_path: Path, kind: str, fields: dict[str, object], named: str
) -> None:
    params = read(tmp_path, changed(("recipes.cmb", {"own": {kind: fields}})))
    with pytest.raises(UserError, match=named):
        params.run(Run("cmb-own", "short-1_8", 0))


def test_a_variant_may_be_called_method(tmp_path: Path) -> None:
    assert "cmb-method" in read(tmp_path, changed(("recipes.cmb", {"method": {"dim": 8}}))).recipes


@pytest.mark.parametrize(
    ("name", "entry", "ratio", "count", "labelled"),
    [
        ("1/8", {}, "1/8", None, 1323),  # of 10,582 images: the ceiling
        ("1/50", {}, "1/50", None, 212),
        ("full", {}, "1", None, 10582),
        ("1/4", {"count": 2645}, "1/4", 2645, 2645),
        ("1/8_mine", {"ratio": "1/8"}, "1/8", None, 1323),
        ("few", {"ratio": "1/100", "count": 92}, "1/100", 92, 92),
        ("92", {"ratio": "1/16"}, "1/16", 92, 92),
    ],
)
def test_a_share_is_known_by_its_name_or_by_its_ratio(
    tmp_path: Path, name: str, entry: Tree, ratio: str, count: int | None, labelled: int
) -> None:
    params = read(tmp_path, changed(("datasets.shapes.shares", {name: entry}), ("grids.demo.shares", [name])))
    (split,) = params.splits
    share = params.share(split)
    assert (share.ratio, share.count) == (Fraction(ratio), count)
    assert share.labelled_count(10582) == labelled


@pytest.mark.parametrize(
    ("ratio", "images", "count"), [("1/16", 10582, 662), ("1/8", 2975, 372), ("1", 367, 367), ("1/9", 8, 1)]
)
def test_the_published_counts_are_ceilings(ratio: str, images: int, count: int) -> None:
    assert Share(Fraction(ratio)).labelled_count(images) == count


def test_a_recipes_option_goes_before_the_protocols(tmp_path: Path) -> None:
    tree = changed(("protocols.short.methods", {"cmb": {"dim": 1, "memory_size": 1}}))
    tree["recipes"]["cmb"] = {"wide": {"dim": 2}}
    params = read(tmp_path, tree)
    assert params.run(Run("cmb", "short-1_8", 0)).options == {"dim": 1, "memory_size": 1}
    assert params.run(Run("cmb-wide", "short-1_8", 0)).options == {"dim": 2, "memory_size": 1}


def test_a_run_that_stands_in_two_tables_is_one_run(tmp_path: Path) -> None:
    tree = changed(("grids.again", {**TREE["grids"]["demo"], "title": "Again", "seeds": [1, 2]}))
    params = read(tmp_path, tree)
    runs = [run for grid in params.grids.values() for run in grid.runs()]
    assert len(runs) == 4
    assert len(set(runs)) == 3
    assert params.grids_of(Run("supervised", "short-1_8", 1)) == ["demo", "again"]
    assert params.grids_of(Run("supervised", "short-1_8", 0)) == ["demo"]
    assert params.grids_of(Run("supervised", "short-full", 0)) == []


def test_a_run_trains_on_as_many_gpus_as_the_first_of_its_grids_says(tmp_path: Path) -> None:
    plain = read(tmp_path, TREE)
    again = {**TREE["grids"]["demo"], "title": "Again", "gpus": 2, "seeds": [1, 2]}
    params = read(tmp_path, changed(("grids.again", again)))
    gpus = [params.gpus(Run("supervised", "short-1_8", seed)) for seed in (0, 1, 2, 3)]
    assert gpus == [1, 1, 2, 1]
    run = Run("supervised", "short-1_8", 2)
    assert params.run(run).digest() == plain.run(run).digest()


# --- networks ----------------------------------------------------------------------------------------------

TRANSFORMER = {
    "head": "dpt",
    "backbone": "timm:vit_small_patch14_dinov2.lvd142m",
    "weights": "hub",
    "output_stride": 14,
    "decoder_channels": 64,
}


def test_a_transformers_patch_is_read_from_its_name() -> None:
    patches = {
        "timm:vit_small_patch14_dinov2.lvd142m": 14,
        "timm:vit_base_patch16_dinov3": 16,
        "timm:swin_tiny_patch4_window7_224": None,  # windows of patches: no transformer of one scale
        "timm:convnext_tiny.fb_in22k": None,
        "resnet18": None,
    }
    for backbone, patch in patches.items():
        stride = patch or 16
        assert Network("dpt", backbone, "none", stride, 64).patch == patch


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, None),
        ({"geometry.crop": 512}, "protocols: short: geometry: crop: "),
        ({"evaluation.window": 512, "evaluation.stride": 0.5}, "protocols: short: evaluation: window: "),
        ({"evaluation.window": 518, "evaluation.stride": 0.5}, None),
        ({"network.output_stride": 16}, "protocols: short: network: output_stride: "),
        ({"network.weights": "imagenet"}, "protocols: short: network: weights: "),
        ({"network.backbone": "resnet18"}, "protocols: short: network: weights: "),  # none on timm's hub
        ({"network.backbone": "vit_small"}, "protocols: short: network: backbone: "),
    ],
)
def test_crops_and_windows_are_multiples_of_the_patch(
    tmp_path: Path, changes: dict[str, Any], key: str | None
) -> None:
    start = {"network": dict(TRANSFORMER), "geometry.crop": 518, **changes}
    tree = changed(*((f"protocols.short.{name}", value) for name, value in start.items()))
    if key is None:
        assert read(tmp_path, tree).protocols["short"].network.patch == 14
    else:
        with pytest.raises(UserError) as caught:
            read(tmp_path, tree)
        assert key in str(caught.value)


def test_a_protocol_starts_from_other_weights_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    tree = changed(
        ("starts", {"short": {"random": "none", "moco": "pretrained/some"}}),
        ("pretraining", {"some": recipes.tree("moco", dataset="shapes")}),
    )
    params = read(tmp_path, tree)
    plain = params.protocols["short"]
    for start, weights in (("random", "none"), ("moco", "pretrained/some")):
        network = dataclasses.replace(plain.network, weights=weights)
        assert params.protocols[f"short_{start}"] == dataclasses.replace(plain, network=network)
    run = params.run(Run("supervised", "short_moco-1_8", 0))
    assert run.weights_sha256 == params.pretraining_config("some").digest()
    assert params.run(Run("supervised", "short_random-1_8", 0)).weights_sha256 == "none"
    assert params.start("pretrained/some") == "moco after random weights"
    other = {"some": recipes.tree("moco", dataset="shapes", steps=7)}
    again = read(tmp_path, {**tree, "pretraining": other}).run(run.run)
    assert again.digest() != run.digest()


# --- a wrong file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "value", "key"),
    [
        ("grids", GONE, "'grids'"),
        ("default", GONE, "'default'"),
        ("extra", {}, "'extra'"),
        ("default", ["deno"], "default: "),
        ("protocols.short.stepz", 5, "protocols: short: unknown key 'stepz'"),
        ("protocols.short.steps", GONE, "protocols: short: missing key 'steps'"),
        ("protocols.short.steps", "many", "protocols: short: steps: "),
        ("protocols.short.steps", True, "protocols: short: steps: "),
        ("protocols.short.steps", 0, "protocols: short: steps: "),
        ("protocols.short.labelled_batch", 1, "protocols: short: labelled_batch: "),
        ("protocols.short.unlabelled_batch", 1, "protocols: short: unlabelled_batch: "),
        ("protocols.short.accumulate", 0, "protocols: short: accumulate: "),
        ("protocols.short.accumulate", 3, "protocols: short: accumulate: "),
        ("protocols.short.accumulate", 4, "protocols: short: accumulate: "),
        ("protocols.short.threads", 0, "protocols: short: threads: "),
        ("protocols.short.log_every", 0, "protocols: short: log_every: "),
        ("protocols.short.workers", -1, "protocols: short: workers: "),
        ("protocols.short.image_cache_mib", -1, "protocols: short: image_cache_mib: "),
        ("protocols.short.checkpoint_minutes", -1, "protocols: short: checkpoint_minutes: "),
        ("protocols.short.precision", "fp16", "protocols: short: precision: "),
        ("protocols.short.compile", "yes", "protocols: short: compile: "),
        ("protocols.short.dataset", "kitti", "protocols: short: dataset: "),
        ("protocols.short.methods", {"magic": {}}, "protocols: short: methods: "),
        ("protocols.short.network.weights", "pretrained/x", "short: network: weights: pretrained/x: "),
        ("protocols.short.network.weights", "pretrained/", "short: network: weights: pretrained/: "),
        ("pretraining", {"some": {}}, "pretraining: some: missing key "),
        ("starts", {"shirt": {"random": "none"}}, "starts: "),
        ("starts", {"short": "none"}, "starts: short: "),
        ("starts", {"short": {"random": 1}}, "protocols: short_random: network: weights: "),
        ("pretraining", {"some": {**recipes.tree("simclr"), "method": "x"}}, "pretraining: some: method: "),
        ("pretraining", {"some": recipes.tree("simclr", dataset="kitti")}, "pretraining: some: dataset: "),
        ("protocols.short.geometry.scale", [1, 2, 3], "protocols: short: geometry: scale: "),
        ("protocols.short.geometry.scale", [2, 1], "protocols: short: geometry: scale: "),
        ("protocols.short.geometry.scale", [0, 1], "protocols: short: geometry: scale: "),
        ("protocols.short.geometry.crop", 0, "protocols: short: geometry: crop: "),
        ("protocols.short.network.head", "unet", "protocols: short: network: head: "),
        ("protocols.short.network.backbone", "vgg", "protocols: short: network: backbone: "),
        ("protocols.short.network.weights", "coco", "protocols: short: network: weights: "),
        ("protocols.short.network.output_stride", 32, "protocols: short: network: output_stride: "),
        ("protocols.short.network.decoder_channels", 0, "protocols: short: network: decoder_channels: "),
        ("protocols.short.optimiser.clip_norm", -5.0, "protocols: short: optimiser: clip_norm: "),
        ("protocols.short.optimiser.learning_rate", float("nan"), "optimiser: learning_rate: "),
        ("protocols.short.optimiser.learning_rate", 0, "protocols: short: optimiser: learning_rate: "),
        ("protocols.short.optimiser.backbone_factor", -1, "protocols: short: optimiser: backbone_factor: "),
        ("protocols.short.optimiser.power", 0, "protocols: short: optimiser: power: "),
        ("protocols.short.optimiser.momentum", 1.0, "protocols: short: optimiser: momentum: "),
        ("protocols.short.optimiser.weight_decay", -0.1, "protocols: short: optimiser: weight_decay: "),
        ("protocols.short.evaluation.long_side", 0, "protocols: short: evaluation: long_side: "),
        ("protocols.short.evaluation.window", 16, "protocols: short: evaluation: window and stride: "),
        ("protocols.short.evaluation.stride", 0.5, "protocols: short: evaluation: window and stride: "),
        ("protocols.short.evaluation", {**OWN_SIZE, "window": 8, "stride": 2.0}, "stride: 2.0"),
        ("protocols.short.evaluation.recalibrate", 0, "protocols: short: evaluation: recalibrate: "),
        ("recipes.supervised.other", {"network": {"head": "unet"}}, "supervised-other: network: head"),
        ("datasets.shapes.source", "imagenet", "datasets: shapes: source: "),
        ("datasets.shapes.classes", ["sky"], "datasets: shapes: classes: "),
        ("datasets.shapes.classes", ["sky", "sky"], "datasets: shapes: classes: "),
        ("datasets.shapes.classes", [str(each) for each in range(255)], "datasets: shapes: classes: "),
        ("datasets.shapes.background", 2, "datasets: shapes: background: "),
        ("datasets.shapes.evaluate", "train", "datasets: shapes: evaluate: "),
        ("datasets.shapes.shares", {"eighth": {}}, "datasets: shapes: shares: eighth: "),
        ("datasets.shapes.shares", {"9/8": {}}, "datasets: shapes: shares: 9/8: "),
        ("datasets.shapes.shares", {"0": {}}, "datasets: shapes: shares: 0: "),
        ("datasets.shapes.shares", {"few": {"ratio": "1/8", "count": 0}}, "shares: few: count: "),
        ("datasets.shapes.shares", {"few": {"ratio": "5/4"}}, "shares: few: ratio: "),
        ("recipes.magic", {}, "recipes: magic: "),
        ("recipes.mine", {"method": "magic"}, "recipes: mine: "),
        ("recipes.cmb", {"weak": 1}, "recipes: cmb: weak: "),
        ("recipes.cmb", [], "recipes: cmb: "),
        ("grids.demo.protocol", "long", "grids: demo: protocol: "),
        ("grids.demo.protocol", GONE, "grids: demo: "),
        ("grids.demo.shares", GONE, "grids: demo: "),
        ("grids.demo.shares", ["1/4"], "grids: demo: shares: "),
        ("grids.demo.protocols", {"short": ["full"]}, "grids: demo: "),
        ("grids.demo.beside", ["supervised"], "grids: demo: unknown key 'beside'"),
        ("grids.demo.recipes", ["cmb"], "grids: demo: recipes: "),
        ("grids.demo.recipes", [], "grids: demo: recipes: "),
        ("grids.demo.recipes", ["supervised", "supervised"], "grids: demo: recipes: "),
        ("grids.demo.shares", ["1/8", "1/8"], "grids: demo: splits: "),
        ("grids.demo.seeds", [], "grids: demo: seeds: "),
        ("grids.demo.seeds", [1, 1], "grids: demo: seeds: "),
        ("grids.demo.seeds", [-1], "grids: demo: seeds: "),
        ("grids.demo.seeds", ["zero"], "grids: demo: seeds: 0: "),
        ("grids.demo.waterfall", ["supervised"], "grids: demo: waterfall: "),
        ("grids.demo.waterfall", ["supervised", "supervised"], "grids: demo: waterfall: "),
        ("grids.demo.waterfall", ["supervised", "cmb"], "grids: demo: waterfall: "),
        ("grids.demo.gpus", 0, "grids: demo: gpus: "),
        ("grids.all", TREE["grids"]["demo"], "grids: 'all': "),
        ("protocols.a/b", TREE["protocols"]["short"], "protocols: 'a/b': "),
        ("recipes.Supervised", {"method": "cmb"}, "recipes: 'supervised' and 'Supervised'"),
        ("datasets.shapes.shares.few images", {"ratio": "1/8"}, "splits: 'short-few images': "),
        ("grids.demo.gpus", 3, "gpus: 3"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line_by_its_key(
    tmp_path: Path, keys: str, value: object, key: str
) -> None:
    with pytest.raises(UserError) as refusal:
        read(tmp_path, changed((keys, value)))
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "params.yaml" in str(refusal.value)


def test_an_unknown_name_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    params = read(tmp_path, TREE)
    for run, missing in (
        (Run("cmb", "short-1_8", 0), "'cmb'"),
        (Run("supervised", "short-1_4", 0), "'short-1_4'"),
    ):
        with pytest.raises(UserError, match=missing) as refusal:
            params.run(run)
        assert {"supervised", "short-1_8"} & set(re.split(r"[ ,;]+", str(refusal.value)))
    with pytest.raises(UserError, match="seed: -1"):
        params.run(Run("supervised", "short-1_8", -1))


# --- a run's identity ---------------------------------------------------------------------------------------


def digest(folder: Path, tree: Tree, run: Run = RUN) -> str:
    return read(folder, tree).run(run).digest()


@pytest.mark.parametrize(
    "change",
    [
        ("grids.demo.title", "Other"),
        ("grids.demo.seeds", [0, 1, 2]),
        ("grids.demo.shares", ["1/8", "full"]),
        ("grids.demo.gpus", 2),
        ("grids.other", {**TREE["grids"]["demo"], "title": "Other"}),
        ("default", []),
        ("datasets.shapes.shares.1/4", {}),
        ("datasets.shapes.shares.full", {"count": 3}),
        ("datasets.other", TREE["datasets"]["shapes"]),
        ("protocols.other", TREE["protocols"]["short"]),
        ("protocols.short.methods.cmb", {"dim": 8}),
        ("recipes.supervised.plain", {}),
        ("recipes.cmb", {"weak": {"dim": 8}}),
    ],
    ids=lambda change: change[0],
)
def test_what_decides_no_number_changes_no_identity(tmp_path: Path, change: tuple[str, object]) -> None:
    assert digest(tmp_path, changed(change)) == digest(tmp_path, TREE)


def test_an_option_of_a_variant_changes_the_variant_alone(tmp_path: Path) -> None:
    runs = [Run(recipe, "short-1_8", 0) for recipe in ("cmb", "cmb-weak", "cmb-bare", "supervised")]
    before, after = (
        read(tmp_path, changed(("recipes.cmb", {"weak": {"dim": dim}, "bare": {}}))) for dim in (8, 16)
    )
    different = [run.recipe for run in runs if before.run(run).digest() != after.run(run).digest()]
    assert different == ["cmb-weak"]


def test_each_run_has_an_identity_of_its_own() -> None:
    params = parameters.load(ROOT / "params.yaml")
    runs = {run for grid in params.grids.values() for run in grid.runs()}
    assert len({params.run(run).digest() for run in runs}) == len(runs)


def numbers(value: object) -> list[object]:
    """Return other values of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    if isinstance(value, str):
        return [value + "x"]
    if isinstance(value, tuple):
        return [(*value[:-1], *numbers(value[-1]))]
    if isinstance(value, Mapping):
        return [{**value, "more": 1}]
    return [7]


def variations(config: Any) -> list[tuple[str, Any]]:
    """Return the dataclass with each field, its parts' too, changed, by the field's name."""
    found = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            inner = variations(value)
        else:
            inner = [(each.name, other) for other in numbers(value)]
        for name, other in inner:
            copied = copy.copy(config)  # not replace: the value need not be sensible
            object.__setattr__(copied, each.name, other)
            found.append((name, copied))
    return found


def test_a_runs_identity_is_all_of_its_configuration_but_for_what_has_no_effect() -> None:
    params = parameters.load(ROOT / "params.yaml")
    config = params.run(Run("cmb", "camvid-small-1_8", 0))
    varied = variations(config)
    assert {"seed", "steps", "crop", "clip_norm", "classes", "weights_sha256", "window"} < {
        name for name, _ in varied
    }
    for name, other in varied:
        assert isinstance(other, RunConfig)
        assert (other.digest() == config.digest()) == (name in parameters.WITHOUT_EFFECT), name


def test_the_content_of_the_weights_is_the_identity_and_not_their_path(tmp_path: Path) -> None:
    def of_weights(path: Path) -> str:
        return digest(tmp_path, changed(("protocols.short.network.weights", str(path))))

    one, moved, other = (tmp_path / name for name in ("one.pth", "moved.pth", "other.pth"))
    one.write_bytes(b"weights")
    moved.write_bytes(b"weights")
    other.write_bytes(b"others")
    assert of_weights(one) == of_weights(moved) != of_weights(other)
    assert of_weights(one) != digest(tmp_path, TREE)
    absent = of_weights(tmp_path / "absent.pth")  # planning goes on
    assert absent not in (of_weights(one), digest(tmp_path, TREE))


@pytest.mark.parametrize(
    ("file", "concerned"),
    [
        ("training/loop.py", {"supervised", "cmb", "dcc"}),
        ("methods/cmb.py", {"cmb"}),
        ("data/sources/shapes.py", {"supervised", "cmb", "dcc"}),
        ("data/sources/camvid.py", set()),
        ("evaluation/evaluate.py", set()),
    ],
)
def test_a_raised_revision_changes_the_runs_that_it_concerns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, concerned: set[str]
) -> None:
    library = tmp_path / "semiseg"
    shutil.copytree(ROOT / "semiseg", library, ignore=shutil.ignore_patterns("__pycache__"))
    params = read(tmp_path, changed(("recipes.cmb", {}), ("recipes.dcc", {})))
    runs = [Run(recipe, "short-1_8", 0) for recipe in ("supervised", "cmb", "dcc")]
    before = [params.run(run).digest() for run in runs]
    monkeypatch.setattr(parameters, "LIBRARY", library)
    assert [params.run(run).digest() for run in runs] == before
    text = (library / file).read_text()
    number = parameters.revision(library / file)
    assert text.count(f"\nREVISION = {number}") == 1
    (library / file).write_text(text.replace(f"\nREVISION = {number}", f"\nREVISION = {number + 1}"))
    parameters.revision.cache_clear()
    after = [params.run(run).digest() for run in runs]
    assert {run.recipe for run, old, new in zip(runs, before, after, strict=True) if old != new} == concerned


def test_every_method_and_source_declares_its_revision() -> None:
    for place in (("methods",), ("data", "sources")):
        for name in parameters.files_of(*place):
            assert parameters.revision(parameters.LIBRARY.joinpath(*place, f"{name}.py")) >= 1
    with pytest.raises(ValueError, match=r"paths\.py"):
        parameters.revision(parameters.LIBRARY / "base" / "paths.py")


def test_the_suites_own_file_is_short_and_begins_with_its_headline() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    assert len(lines) <= 650
    params = parameters.load(ROOT / "params.yaml")
    assert params.default
    for name in params.default:
        assert any(line.strip() == f"{name}:" for line in lines[:30])
        assert isinstance(params.grids[name], Grid)
