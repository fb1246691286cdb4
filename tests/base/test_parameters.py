"""params.yaml is read strictly: what is wrong is named by its key, before anything starts."""

import copy
import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from semiseg.base import parameters, paths
from semiseg.base.errors import UserError
from semiseg.methods import contract
from semiseg.models.build import build

ROOT = Path(__file__).parents[2]
TREE = {
    "datasets": {"shapes": {"source": "shapes", "classes": ["background", "disc"]}},
    "protocols": {
        "short": {
            "network": {"head": "deeplabv3plus", "backbone": "resnet18", "weights": "none"},
            "geometry": {"base_size": 96, "scale": [0.5, 2], "crop": 64},
            "optimiser": {"learning_rate": "1e-2"},
            "labelled_batch": 2,
            "unlabelled_batch": 2,
            "steps": 10,
        }
    },
    "splits": {"shapes-1_8": {"dataset": "shapes", "protocol": "short", "ratio": "1/8"}},
    "recipes": {"supervised": {"method": "supervised"}},
    "grids": {
        "demo": {"title": "Demo", "recipes": ["supervised"], "splits": ["shapes-1_8"], "seeds": [0, 1]}
    },
}


def read(tmp_path: Path, tree: object) -> parameters.Params:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return parameters.load(path)


def with_value(keys: str, value: object) -> dict:
    tree = copy.deepcopy(TREE)
    *way, last = keys.split(".")
    place = tree
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


def test_a_good_file_becomes_typed_values(tmp_path: Path) -> None:
    params = read(tmp_path, TREE)
    protocol = params.protocols["short"]
    assert protocol.optimiser.learning_rate == 0.01  # YAML 1.1 reads 1e-2 as text
    assert protocol.geometry.scale == (0.5, 2.0)
    assert params.splits["shapes-1_8"].ratio == Fraction(1, 8)
    assert [str(run) for run in params.grids["demo"].runs()] == [
        "supervised/shapes-1_8/0",
        "supervised/shapes-1_8/1",
    ]


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        ("protocols.short.stepz", 5, "protocols: short: unknown key 'stepz'; known are network"),
        ("protocols.short.steps", None, "protocols: short: missing key 'steps'"),
        ("protocols.short.steps", "many", "protocols: short: steps: expected int, found 'many'"),
        ("protocols.short.steps", True, "protocols: short: steps: expected int, found True"),
        ("protocols.short.labelled_batch", 1, "labelled_batch: 1 is fewer than the 2 that batch norm needs"),
        ("protocols.short.steps", 0, "protocols: short: steps: 0 is not positive"),
        ("protocols.short.geometry.scale", [1, 2, 3], "geometry: scale: expected 2 values, found 3"),
        ("protocols.short.network.head", "unet", "network: head: there is no 'unet'; there are deeplab"),
        ("protocols.short.precision", "fp16", "precision: 'fp16' is neither fp32 nor bf16"),
        ("protocols.short.workers", -1, "protocols: short: workers: -1 is negative"),
        ("protocols.short.optimiser.clip_norm", -5.0, "clip_norm: -5.0 is not a positive number"),
        (
            "protocols.short.optimiser.learning_rate",
            float("nan"),
            "learning_rate: nan is not a positive number",
        ),
        ("protocols.short.optimiser.momentum", 1.0, "momentum: 1.0 is outside [0, 1)"),
        ("protocols.short.network.decoder_channels", 0, "decoder_channels: 0 is not positive"),
        ("grids.demo.seeds", [], "grids: demo: seeds: [] must name something"),
        ("grids.demo.seeds", [-1], "grids: demo: seeds: -1 is negative"),
        ("grids.demo.recipes", ["supervised", "supervised"], "must name something, and nothing twice"),
        ("splits.shapes-1_8.ratio", "9/8", "splits: shapes-1_8: ratio: 9/8 is outside (0, 1]"),
        ("splits.shapes-1_8.ratio", "0", "ratio: 0 is outside (0, 1]"),
        ("splits.shapes-1_8.ratio", "eighth", "ratio: expected a share such as 1/8, found 'eighth'"),
        ("splits.shapes-1_8.dataset", "kitti", "dataset: there is no 'kitti'; there are shapes"),
        ("datasets.shapes.source", "imagenet", "source: there is no 'imagenet'; there are"),
        ("recipes.supervised.method", "magic", "recipes: supervised: method: there is no 'magic'"),
        ("grids.demo.recipes", ["cmb"], "grids: demo: recipes: there is no 'cmb'"),
        ("grids.demo.beside", ["cmb"], "grids: demo: beside: no grid runs cmb/shapes-1_8/0"),
        ("grids.demo.beside", ["supervised"], "beside: ['supervised']: a recipe stands twice, or among"),
        (
            "grids.demo.waterfall",
            ["supervised"],
            "grids: demo: waterfall: ['supervised'] must name at least two",
        ),
        ("grids.demo.waterfall", ["supervised"] * 2, "at least two recipes, and none twice"),
        (
            "grids.demo.waterfall",
            ["supervised", "cmb"],
            "waterfall: 'cmb' is no row of the table; its rows are",
        ),
        (
            "grids.again",
            {"title": "Again", "recipes": ["supervised"], "splits": ["shapes-1_8"], "seeds": [1]},
            "again and demo both run supervised/shapes-1_8/1; name supervised under beside in one of them",
        ),
        ("protocols.short.network.weights", "coco", "weights: coco is there for resnet101, not for resnet18"),
        ("grids.demo.gpus", 0, "grids: demo: gpus: 0 is not positive"),
        ("recipes.supervised.gpus", 3, "gpus: 3 cannot share the labelled_batch of 2 evenly"),
        ("grids", None, "missing key 'grids'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, keys: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(tmp_path, with_value(keys, value))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "params.yaml" in str(refusal.value)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(TREE).replace("    steps: 10\n", "    steps: 10\n    steps: 20\n"))
    with pytest.raises(UserError, match=r"params\.yaml: not YAML: 'steps' stands twice"):
        parameters.load(path)


def test_what_a_run_cannot_work_with_is_refused_before_it_starts(tmp_path: Path) -> None:
    tree = with_value("protocols.short.geometry.crop", 47)
    tree["recipes"]["dcc"] = {"method": "dcc"}
    contract.check_options(read(tmp_path, tree))  # no grid runs it
    tree["grids"]["demo"]["recipes"].append("dcc")
    with pytest.raises(UserError, match="crop 47 is not a multiple of DCC's stride 8"):
        contract.check_options(read(tmp_path, tree))


def test_weights_that_are_not_there_stop_only_the_runs_that_need_them(tmp_path: Path) -> None:
    params = read(tmp_path, with_value("protocols.short.network.weights", "absent.pth"))
    contract.check_options(params)
    network = params.protocols["short"].network
    with pytest.raises(UserError, match=r"network: weights: absent\.pth: no such file; give imagenet, coco"):
        build(network, 2)


def test_no_file_and_no_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found; start from the project's folder"):
        parameters.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        parameters.load(tmp_path / "params.yaml")


def test_a_wrong_option_of_a_method_is_refused(tmp_path: Path) -> None:
    params = read(tmp_path, with_value("recipes.supervised.options", {"weight": 1}))
    with pytest.raises(UserError, match=r"recipes: supervised: options.*unknown key 'weight'"):
        contract.check_options(params)


def test_a_table_reads_what_other_grids_run_on_its_splits_and_seeds(tmp_path: Path) -> None:
    tree = with_value(
        "grids.variant",
        {
            "title": "Variant",
            "recipes": ["other"],
            "splits": ["shapes-1_8"],
            "seeds": [1],
            "beside": ["supervised"],
        },
    )
    tree["recipes"]["other"] = {"method": "supervised"}
    params = read(tmp_path, tree)
    variant = params.grids["variant"]
    assert [str(run) for run in variant.runs()] == ["other/shapes-1_8/1"]
    assert [str(run) for run in variant.table()] == ["supervised/shapes-1_8/1", "other/shapes-1_8/1"]
    assert [params.grid_of(run) for run in variant.table()] == ["demo", "variant"]


def test_the_digest_changes_with_what_a_run_reads_and_with_nothing_else(tmp_path: Path) -> None:
    run = paths.Run("supervised", "shapes-1_8", 0)
    before = read(tmp_path, TREE).run(run).digest()
    assert read(tmp_path, with_value("grids.demo.title", "Other")).run(run).digest() == before
    other_recipe = with_value("recipes.other", {"method": "supervised"})
    assert read(tmp_path, other_recipe).run(run).digest() == before
    assert read(tmp_path, with_value("protocols.short.steps", 11)).run(run).digest() != before
    assert read(tmp_path, TREE).run(paths.Run("supervised", "shapes-1_8", 1)).digest() != before


def test_a_recipe_says_on_how_many_gpus_it_runs_before_its_grid_does(tmp_path: Path) -> None:
    run = paths.Run("supervised", "shapes-1_8", 0)
    plain = read(tmp_path, TREE)
    tree = with_value("grids.demo.gpus", 2)
    of_grid = read(tmp_path, tree)
    tree["recipes"]["supervised"]["gpus"] = 1
    of_recipe = read(tmp_path, tree)
    assert [params.gpus(run) for params in (plain, of_grid, of_recipe)] == [1, 2, 1]
    assert {params.run(run).digest() for params in (plain, of_grid, of_recipe)} == {plain.run(run).digest()}


def test_a_recipes_option_goes_before_the_protocols(tmp_path: Path) -> None:
    tree = with_value("protocols.short.methods", {"supervised": {"a": 1, "b": 1}})
    tree["recipes"]["supervised"]["options"] = {"b": 2}
    assert read(tmp_path, tree).run(paths.Run("supervised", "shapes-1_8", 0)).options == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("ratio", "images", "count"),
    [("1/16", 10582, 662), ("1/8", 10582, 1323), ("1/50", 10582, 212), ("1/8", 2975, 372), ("1", 367, 367)],
)
def test_the_published_counts_are_ceilings(ratio: str, images: int, count: int) -> None:
    assert parameters.Split("voc", "unified", Fraction(ratio)).labelled_count(images) == count


def test_a_named_count_goes_before_the_ratio() -> None:
    assert parameters.Split("voc", "unified", Fraction("1/4"), count=2645).labelled_count(10582) == 2645


def test_what_no_number_depends_on_is_no_part_of_a_runs_identity() -> None:
    params = parameters.load(ROOT / "params.yaml")
    run = params.run(paths.Run("cmb", "camvid_small-1_8", 0))
    for name in parameters.WITHOUT_EFFECT:
        other = dataclasses.replace(run.protocol, **{name: getattr(run.protocol, name) + 1})
        assert dataclasses.replace(run, protocol=other).digest() == run.digest()
    steps = dataclasses.replace(run.protocol, steps=run.protocol.steps + 1)
    assert dataclasses.replace(run, protocol=steps).digest() != run.digest()
