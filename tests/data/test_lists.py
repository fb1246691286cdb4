import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import lists, splits
from semiseg.data.families import FAMILIES, Family, File
from tests import releases
from tests.releases import Server

ROOT = Path(__file__).parents[2]
IDS = [f"2008_{number:06d}" for number in range(6)]
ORDER = [4, 0, 5, 2, 1, 3]
CITY = "aachen_000000_000019"
PAIRS = "".join(f"/JPEGImages/{each}.jpg /SegmentationClassAug/{each}.png\n" for each in (IDS[3], IDS[1]))
# A line of each form in which authors publish an image, and its id.
FORMS = {
    IDS[3]: IDS[3],
    f"JPEGImages/{IDS[3]}.jpg": IDS[3],
    f"/JPEGImages/{IDS[3]}.jpg\t/SegmentationClassAug/{IDS[3]}.png": IDS[3],
    f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png": CITY,
    f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png gtFine/train/aachen/{CITY}_gtFine.png": CITY,
    f"/images/train/{CITY}.png\t/segmentation/train/{CITY}_gtFine.png": CITY,
}


def pickled(order: list[int]) -> bytes:
    return pickle.dumps(np.array(order), protocol=3)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve small lists: pairs (VOC, two images, seed 1), a city, and a permutation with its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMISEG_ARCHIVES", raising=False)
    with releases.serving() as serving:
        serving.files = {
            "pairs.txt": PAIRS.encode(),
            "city.txt": f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png\n".encode(),
            "names.txt": releases.lines(IDS),
            "order.pkl": pickled(ORDER),
        }
        publish(serving, monkeypatch)
        yield serving


def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the families by those that the server has now."""
    files = {name: File(name, hashlib.sha256(body).hexdigest()) for name, body in server.files.items()}
    plain = {("voc", 2, 1): files["pairs.txt"], ("cityscapes", 1, 0): files["city.txt"]}
    permuted = {("voc", count, 1): files["order.pkl"] for count in (1, 4, 6)}
    monkeypatch.setitem(FAMILIES, "dcc", Family(server.address, plain))
    monkeypatch.setitem(FAMILIES, "cmb", Family(server.address, permuted, files["names.txt"]))


def test_a_published_list_is_written_in_the_projects_form(server: Server) -> None:
    written = lists.write("voc-1_3", 1, "dcc", "voc", IDS, 2)
    assert written.labelled == (IDS[3], IDS[1])
    assert written.unlabelled == (IDS[0], IDS[2], IDS[4], IDS[5])
    assert written == splits.read("voc-1_3", 1)
    digest = hashlib.sha256(f"{IDS[3]}\n{IDS[1]}\n".encode()).hexdigest()
    of_file = hashlib.sha256(PAIRS.encode()).hexdigest()
    assert Path("data/splits/voc-1_3/1/labelled.txt").read_text() == (
        f"# family: dcc; seed: 1; from: pairs.txt {of_file}; "
        f"labelled: 2; sha256 of the ids: {digest}\n{IDS[3]}\n{IDS[1]}\n"
    )


def test_a_list_for_cityscapes_names_cities(server: Server) -> None:
    written = lists.write("city", 0, "dcc", "cityscapes", [CITY, "bochum_000000_000313"], 1)
    assert written.labelled == (CITY,)
    assert written.unlabelled == ("bochum_000000_000313",)


@pytest.mark.parametrize("line", FORMS)
def test_an_id_is_read_from_every_form_of_a_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text(f"{line}\r\n\n{line}")
    assert lists.listed(tmp_path / "labeled.txt") == (FORMS[line], FORMS[line])


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_first_of_a_permutation_are_labelled(count: int, server: Server) -> None:
    written = lists.write("voc-any", 1, "cmb", "voc", IDS, count)
    order = tuple(IDS[place] for place in ORDER)
    assert written.labelled == order[:count]
    assert written.unlabelled == (order[count:] or order)


def test_a_list_in_the_archives_folder_needs_no_network(server: Server) -> None:
    place = Path("data/archives/dcc/pairs.txt")
    place.parent.mkdir(parents=True)
    place.write_text(PAIRS)
    lists.write("voc-1_3", 1, "dcc", "voc", IDS, 2)
    assert server.asked == []
    place.write_text(PAIRS.replace(IDS[1], IDS[2]))
    with pytest.raises(UserError, match=r"pairs\.txt: its sha256 is .*; remove it"):
        lists.write("voc-1_3", 1, "dcc", "voc", IDS, 2)


def refused(words: str, name: str, seed: int, source: str, ids: list[str], count: int) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        lists.write("mine", seed, name, source, ids, count)
    assert "\n" not in str(refusal.value)
    assert not Path("data/splits").exists()


def test_a_list_that_was_not_published_is_refused(server: Server) -> None:
    refused("'dcc': there is no list 2 of 2 images for voc", "dcc", 2, "voc", IDS, 2)
    refused("'dcc': there is no list 1 of 3 images for voc", "dcc", 1, "voc", IDS, 3)
    refused("'cmb': there is no list 1 of 1 images for cityscapes", "cmb", 1, "cityscapes", IDS, 1)
    refused("'mine': there is no such family; there are dcc, cmb, classic", "mine", 1, "voc", IDS, 2)
    assert server.asked == []


def test_a_list_that_does_not_fit_the_dataset_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(f"{IDS[3]} is no training image of the dataset", "dcc", 1, "voc", [IDS[1], "other"], 2)
    for wrong in (PAIRS.splitlines()[0], PAIRS.splitlines()[0] * 2):
        server.files["pairs.txt"] = wrong.encode()
        publish(server, monkeypatch)
        Path("data/archives/dcc/pairs.txt").unlink()
        refused("its list has 1 images, 2 are asked for", "dcc", 1, "voc", IDS, 2)
    server.files["names.txt"] = releases.lines(IDS[:5])
    publish(server, monkeypatch)
    refused(r"order\.pkl: orders 6 images, .*names\.txt has 5", "cmb", 1, "voc", IDS, 4)


def test_a_changed_file_is_refused(server: Server) -> None:
    server.files["pairs.txt"] += b"\n"
    refused(r"its sha256 is .*; put dcc/pairs\.txt into", "dcc", 1, "voc", IDS, 2)


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


COUNTS = {
    "dcc": {"voc": {662, 1323, 2645}, "cityscapes": {372, 744}},
    "cmb": {"voc": {212, 530, 1323}},
    "classic": {"voc": {92, 183, 366, 732, 1464}},
    "cps": {"voc": {662, 1323, 2646, 5291}, "cityscapes": {186, 372, 744, 1488}},
    "u2pl": {"voc": {662, 1323, 2646, 5291}, "cityscapes": {186, 372, 744, 1488}},
    "stpp": {"voc": {92}, "cityscapes": {100}},
}
SEVERAL = {"dcc", "cmb", "stpp"}  # have three lists of each count; the others have one


def test_the_families_have_the_counts_that_their_papers_report() -> None:
    assert FAMILIES.keys() == COUNTS.keys()
    for name, family in FAMILIES.items():
        seeds = {0, 1, 2} if name in SEVERAL else {0}
        expected = {
            (source, count, seed)
            for source, counts in COUNTS[name].items()
            for count in counts
            for seed in seeds
        }
        assert family.lists.keys() == expected
        assert family.address.startswith("https://raw.githubusercontent.com/")
        assert len(family.address.split("/")[5]) == 40  # a commit
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in family.lists.values())
        if name != "cmb":
            assert len({file.sha256 for file in family.lists.values()}) == len(expected)


def test_every_list_that_a_grid_uses_was_published() -> None:
    params = parameters.load(ROOT / "params.yaml")
    used = 0
    for grid in params.grids.values():
        for run in grid.runs():
            share, split = params.share(run.split), params.splits[run.split]
            if share.lists != parameters.DRAWN:
                source = params.datasets[split.dataset].source
                assert (source, share.count, run.seed) in FAMILIES[share.lists].lists
                used += 1
    assert used
