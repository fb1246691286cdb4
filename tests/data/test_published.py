import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Family
from semiseg.data import lists, splits
from tests import releases
from tests.releases import Server

ROOT = Path(__file__).parents[2]
IDS = [f"2008_{number:06d}" for number in range(6)]
ORDER = [4, 0, 5, 2, 1, 3]
DCC_VOC = "".join(f"/JPEGImages/{each}.jpg /SegmentationClassAug/{each}.png\n" for each in (IDS[3], IDS[1]))
CITY = "aachen_000000_000019"
DCC_CITY = (
    f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png gtFine/train/aachen/{CITY}_gtFine_labelTrainIds.png\n"
)


def pickled(order: list[int]) -> bytes:
    return pickle.dumps(np.array(order), protocol=3)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    with releases.serving() as serving:
        serving.files = {
            "voc_splits1/2_train_supervised.txt": DCC_VOC.encode(),
            "city_splits0/1_train_supervised.txt": DCC_CITY.encode(),
            "train_aug.txt": releases.lines(IDS),
            "split_1.pkl": pickled(ORDER),
        }
        yield serving


def family(server: Server) -> Family:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in server.files.items()}
    return Family(server.address, digests)


def test_a_list_of_dcc_is_written_in_the_projects_form(server: Server) -> None:
    written = lists.write("voc-1_3", 1, "dcc", family(server), "voc", IDS, 2)
    assert written.labelled == (IDS[3], IDS[1])
    assert written.unlabelled == (IDS[0], IDS[2], IDS[4], IDS[5])
    assert written == splits.read("voc-1_3", 1)
    digest = hashlib.sha256(f"{IDS[3]}\n{IDS[1]}\n".encode()).hexdigest()
    of_file = hashlib.sha256(DCC_VOC.encode()).hexdigest()
    assert Path("data/splits/voc-1_3/1/labelled.txt").read_text() == (
        f"# family: dcc; seed: 1; from: voc_splits1/2_train_supervised.txt {of_file}; "
        f"labelled: 2; sha256 of the ids: {digest}\n{IDS[3]}\n{IDS[1]}\n"
    )


def test_a_list_of_dcc_for_cityscapes_names_cities(server: Server) -> None:
    written = lists.write("city", 0, "dcc", family(server), "cityscapes", [CITY, "bochum_000000_000313"], 1)
    assert written.labelled == (CITY,)
    assert written.unlabelled == ("bochum_000000_000313",)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_first_of_cmbs_permutation_are_labelled(count: int, server: Server) -> None:
    written = lists.write("voc-any", 1, "cmb", family(server), "voc", IDS, count)
    order = tuple(IDS[place] for place in ORDER)
    assert written.labelled == order[:count]
    assert written.unlabelled == (order[count:] or order)


def test_a_list_in_the_archives_folder_needs_no_network(server: Server) -> None:
    place = Path("data/archives/dcc/voc_splits1/2_train_supervised.txt")
    place.parent.mkdir(parents=True)
    place.write_text(DCC_VOC)
    lists.write("voc-1_3", 1, "dcc", family(server), "voc", IDS, 2)
    assert server.asked == []
    place.write_text(DCC_VOC.replace(IDS[1], IDS[2]))
    with pytest.raises(UserError, match=r"2_train_supervised\.txt: its sha256 is .*; remove it"):
        lists.write("voc-1_3", 1, "dcc", family(server), "voc", IDS, 2)


def refused(
    server: Server, words: str, name: str, seed: int, source: str, ids: list[str], count: int
) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        lists.write("mine", seed, name, family(server), source, ids, count)
    assert "\n" not in str(refusal.value)
    assert not Path("data/splits").exists()


def test_a_list_that_was_not_published_is_refused(server: Server) -> None:
    refused(server, r"'dcc' has no voc_splits2/2_train_supervised\.txt \(seed 2", "dcc", 2, "voc", IDS, 2)
    refused(server, r"'dcc' has no voc_splits1/3_train", "dcc", 1, "voc", IDS, 3)
    refused(server, r"'cmb' has no split_0\.pkl", "cmb", 0, "voc", IDS, 3)
    refused(server, r"CMB's lists for cityscapes", "cmb", 1, "cityscapes", IDS, 3)
    refused(server, r"'u2pl': no lists are read by that name; there are dcc, cmb", "u2pl", 1, "voc", IDS, 3)
    assert all(not asked.endswith(".txt") or asked == "train_aug.txt" for asked, _ in server.asked)


def test_a_list_of_other_images_is_refused(server: Server) -> None:
    refused(server, f"{IDS[3]} is no training image of the dataset", "dcc", 1, "voc", [IDS[1], "other"], 2)
    server.files["voc_splits1/2_train_supervised.txt"] = DCC_VOC.splitlines()[0].encode()
    Path("data/archives/dcc/voc_splits1/2_train_supervised.txt").unlink()
    refused(server, "its list has 1 images, 2 are asked for", "dcc", 1, "voc", IDS, 2)


def test_a_changed_file_is_refused(server: Server) -> None:
    of_before = family(server)
    server.files["voc_splits1/2_train_supervised.txt"] += b"\n"
    with pytest.raises(
        UserError, match=r"its sha256 is .*; put dcc/voc_splits1/2_train_supervised\.txt into"
    ):
        lists.write("mine", 1, "dcc", of_before, "voc", IDS, 2)
    assert not Path("data/splits").exists()


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("hacked",)


class MaliciousNumbers:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("__import__('os').mkdir('hacked')",)


def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([MaliciousNumbers()], dtype=object)
    for content in (Malicious(), MaliciousNumbers(), [1, Malicious()], objects):
        Path("order.pkl").write_bytes(pickle.dumps(content, protocol=3))
        with pytest.raises(
            UserError, match=r"order\.pkl: not a pickled array of numbers \(it asks for \w+\.\w+\)"
        ):
            lists.read_permutation(Path("order.pkl"))
    assert not Path("hacked").exists()
    pickle.loads(Path("order.pkl").read_bytes())  # this is what was refused
    assert Path("hacked").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a pickled array"),
        (pickled([0, 1])[:-20], "not a pickled array"),
        (pickle.dumps([1, 0]), "not a pickled array of whole numbers"),
        (pickle.dumps(np.array([0.0, 1.0])), "not a pickled array of whole numbers"),
        (pickle.dumps(np.array([[0, 1]])), "not a pickled array of whole numbers"),
        (pickled([0, 2]), "not a permutation of 0 to 1"),
        (pickled([0, 0]), "not a permutation of 0 to 1"),
    ],
)
def test_what_is_no_permutation_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "order.pkl").write_bytes(content)
    with pytest.raises(UserError, match=words):
        lists.read_permutation(tmp_path / "order.pkl")


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_permutation_is_read_as_numpy_has_written_it(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "order.pkl").write_bytes(pickle.dumps(np.array(ORDER), protocol=protocol))
    assert lists.read_permutation(tmp_path / "order.pkl") == ORDER


def test_params_yaml_has_a_digest_for_every_list_that_its_grids_use() -> None:
    params = parameters.load(ROOT / "params.yaml")
    used: dict[str, set[str]] = {name: set() for name in params.families}
    for grid in params.grids.values():
        for name in grid.splits:
            split = params.splits[name]
            folder = {"voc": "voc_splits", "cityscapes": "city_splits"}.get(split.dataset, "")
            for seed in grid.seeds:
                if split.family == "dcc":
                    used["dcc"].add(f"{folder}{seed}/{split.count}_train_supervised.txt")
                elif split.family == "cmb":
                    used["cmb"] |= {"train_aug.txt", f"split_{seed}.pkl"}
    assert used == {name: set(each.sha256) for name, each in params.families.items()}
    assert all(used.values())
    assert all(len(digest) == 64 for each in params.families.values() for digest in each.sha256.values())
