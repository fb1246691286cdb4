"""Every kind of dataset through the stages as they stand: prepared, split, trained, scored."""

from collections.abc import Iterator
from copy import deepcopy
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from semiseg.base import parameters
from semiseg.data import prepared, splits
from semiseg.data.archives import Download
from semiseg.data.families import FAMILIES, Family, File
from semiseg.data.sources import cityscapes, voc
from semiseg.evaluation import record
from tests import miniature, project, releases
from tests.project import stage

SEED = 1
DCC_LIST = "voc_splits1/2_train_supervised.txt"
LABELLED = ["2008_000002", "2007_000039"]
RECIPES = ["supervised", "cmb", "dcc"]  # images and masks, mixed masks, pairs of crops


def params() -> dict[str, object]:
    tree = deepcopy(miniature.PARAMS)
    protocol = {**tree["protocols"]["mini"], "steps": 4, "validate_every": 2, "image_cache_mib": 1}
    names = parameters.load(Path(miniature.PIPELINE).parent / "params.yaml").datasets
    datasets = {
        "voc": {
            "source": "voc",
            "background": 0,
            "options": releases.published(releases.TRAIN, releases.VOC_VAL),
        },
        "cityscapes": {
            "source": "cityscapes",
            "options": releases.published(releases.CITY_TRAIN, releases.CITY_VAL),
        },
        "own": {"source": "folder", "classes": ["ground", *(f"c{n}" for n in range(1, 21))]},
    }
    for name in ("voc", "cityscapes"):
        datasets[name]["classes"] = list(names[name].classes)
    datasets["own"]["options"] = {"path": "mine"}
    shares = {"voc": {"count": 2, "lists": "dcc"}, "cityscapes": {}, "own": {"count": 2}}
    for name, share in shares.items():
        datasets[name]["shares"] = {"1/3": share}
    grid = {"recipes": RECIPES, "shares": ["1/3"], "seeds": [SEED]}
    return {
        "default": list(datasets),
        "grids": {name: {**grid, "title": name, "protocol": name} for name in datasets},
        "recipes": tree["recipes"],
        "protocols": {name: {**protocol, "dataset": name} for name in datasets},
        "datasets": datasets,
    }


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_as_in_a_run: None) -> Iterator[Path]:
    """VOC and a published list are served, Cityscapes lies in the archives folder, mine/ is an own one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archives").mkdir()
    monkeypatch.setenv("SEMISEG_ARCHIVES", str(tmp_path / "archives"))
    for name, content in releases.cityscapes_archives().items():
        (tmp_path / "archives" / name).write_bytes(content)
    for folder in ("images", "masks"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for place in range(7):
        (tmp_path / f"mine/images/{place}.jpg").write_bytes(releases.picture(str(place), "JPEG"))
    for place in (0, 1, 2, 6):
        (tmp_path / f"mine/masks/{place}.png").write_bytes(releases.png(releases.mask_of(str(place))))
    (tmp_path / "mine/train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (tmp_path / "mine/val.txt").write_text("6\n")
    with releases.serving() as server:
        server.files = releases.voc_archives()
        server.files[DCC_LIST] = "".join(
            f"/JPEGImages/{each}.jpg /x/{each}.png\n" for each in LABELLED
        ).encode()
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params()))
        downloads = server.downloads("/gone")
        monkeypatch.setattr(voc, "DOWNLOADS", {name: downloads[name] for name in voc.DOWNLOADS})
        monkeypatch.setattr(cityscapes, "DOWNLOADS", dict.fromkeys(cityscapes.DOWNLOADS, Download()))
        published = File(DCC_LIST, sha256(server.files[DCC_LIST]).hexdigest())
        monkeypatch.setitem(FAMILIES, "dcc", Family(server.address, {("voc", 2, SEED): published}))
        yield tmp_path


@pytest.mark.parametrize(
    ("dataset", "images", "classes"), [("voc", 6, 21), ("cityscapes", 6, 19), ("own", 6, 21)]
)
def test_methods_train_on_it_from_nothing(dataset: str, images: int, classes: int, served: Path) -> None:
    split = f"{dataset}-1_3"
    stage("download", dataset)
    stage("verify", dataset)
    stage("split", split, str(SEED))
    lists, config = splits.read(split, SEED), parameters.load().datasets[dataset]
    assert len(lists.labelled) == 2
    assert len(lists.unlabelled) == images - 2
    if dataset == "voc":
        assert list(lists.labelled) == LABELLED
    if dataset == "own":
        assert set(lists.labelled) < {"0", "1", "2"}
        assert set(lists.unlabelled) > {"3", "4", "5"}
    for method in RECIPES:
        stage("train", method, split, str(SEED))
        stage("evaluate", method, split, str(SEED))
        written = record.read(Path("results/runs", method, split, str(SEED), "metrics.json"))
        assert (written.dataset, written.labelled, written.last.step) == (dataset, 2, 4)
        assert 0 <= written.miou <= 1
        assert len(written.score(written.last).iou) == classes
        assert written.provenance.data_sha256 == prepared.open_dataset(dataset, config).digest
        assert written.provenance.labelled_sha256 == splits.ids_sha256(lists.labelled)
        assert written.provenance.labelled_set_sha256 == lists.labelled_set_sha256


def test_without_cityscapes_only_its_runs_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEMISEG_ARCHIVES", "CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for engine in (["snakemake", "--cores", "2"], ["dvc", "repro", "--keep-going"]):
        place = project.copy(tmp_path / engine[0], stubs=True)
        real = (project.ROOT / "pipeline/download.py").read_text()
        (place / "pipeline/download.py").write_text(  # VOC's archives are not to be had here
            f"import sys\nif sys.argv[1] == 'cityscapes':\n    exec({real!r})\n    sys.exit()\n{project.STUB}"
        )
        tree = yaml.safe_load((place / "params.yaml").read_text())
        tree["default"] = ["voc", "cityscapes", "demo"]
        tree["grids"] = {
            name: {
                "title": name,
                "protocol": name,
                "shares": [share],
                "recipes": ["supervised"],
                "seeds": [0],
            }
            for name, share in {"voc": "1/8", "cityscapes": "1/8", "demo": "1/20"}.items()
        }
        (place / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        project.succeed(place, "pipeline.dvc_stages")
        done = project.run(place, *engine)
        assert done.returncode != 0
        assert done.stdout.count("error: Cityscapes needs an account") == 1
        assert (place / "results/tables/voc.csv").exists()
        assert (place / "results/figures/voc/miou.png").exists()
        assert not (place / "data/cityscapes").exists()
        assert not (place / "runs/supervised/cityscapes-1_8").exists()
