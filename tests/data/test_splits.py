import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.data import splits
from tests import miniature

NAMES = st.lists(st.text("abc_019", min_size=1, max_size=6), min_size=1, max_size=30, unique=True)


def test_the_draw_is_the_order_of_the_digests() -> None:
    # printf '7:ant' | sha256sum, and so on: cat 27b5…, bee 3666…, dog 88d1…, ant ea0f…
    assert splits.draw(["ant", "bee", "cat", "dog"], 1, 7) == (("cat",), ("bee", "dog", "ant"))
    assert splits.draw(["ant", "bee", "cat", "dog"], 3, 7) == (("cat", "bee", "dog"), ("ant",))


@given(ids=NAMES, seed=st.integers(0, 5), data=st.data())
def test_a_draw_divides_the_ids_and_larger_shares_hold_smaller_ones(
    ids: list[str], seed: int, data: st.DataObject
) -> None:
    small = data.draw(st.integers(1, len(ids)))
    large = data.draw(st.integers(small, len(ids)))
    labelled, unlabelled = splits.draw(ids, small, seed)
    assert len(labelled) == small
    assert sorted(labelled + unlabelled) == sorted(ids)
    assert splits.draw(ids, large, seed)[0][:small] == labelled
    assert splits.draw(data.draw(st.permutations(ids)), small, seed) == (labelled, unlabelled)


def test_seeds_draw_differently() -> None:
    ids = [f"{number:03d}" for number in range(100)]
    drawn = {splits.draw(ids, 10, seed)[0] for seed in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("ids", "count", "words"),
    [(["a", "b"], 3, "3 labelled images asked for, of 2"), (["a", "a"], 1, "an id stands twice")],
)
def test_a_draw_that_cannot_be_made_is_refused(
    ids: list[str], count: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        splits.draw(ids, count, 0)
    with pytest.raises(UserError, match=f"splits: mine-1_8: {words}"):
        splits.write("mine-1_8", 0, ids, count, "mine")
    assert not any(tmp_path.iterdir())


def test_a_written_split_is_text_that_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = splits.write("mine-1_2", 7, ["ant", "bee", "cat", "dog"], 2, "mine")
    folder = Path("data/splits/mine-1_2/7")
    text = (folder / "labelled.txt").read_bytes()
    # printf 'cat\nbee\n' | sha256sum, and of dog, ant
    of_labelled = "a40b2fa8fc495746896ec250d7c0fa4369c62ed3895473be967297e74cfc6814"
    of_unlabelled = "0b16b374c2576db7b02516db6ff281f8665cf0f54c245f6f0b429d666e8bf40d"
    origin = "# family: drawn; dataset: mine; seed: 7;"
    assert text.decode() == f"{origin} labelled: 2; sha256 of the ids: {of_labelled}\ncat\nbee\n"
    assert (folder / "unlabelled.txt").read_text() == (
        f"{origin} unlabelled: 2; sha256 of the ids: {of_unlabelled}\ndog\nant\n"
    )
    assert written == splits.read("mine-1_2", 7)
    assert written == splits.Split(("cat", "bee"), ("dog", "ant"), of_labelled)


def test_where_all_is_labelled_all_is_unlabelled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = splits.write("mine-full", 7, ["ant", "bee", "cat"], 3, "mine")
    assert sorted(written.labelled) == ["ant", "bee", "cat"]
    assert written.unlabelled == written.labelled


def test_a_split_that_cannot_be_read_names_the_command_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"labelled\.txt: not there; .*python pipeline/split\.py mine-1_2 0"):
        splits.read("mine-1_2", 0)
    splits.write("mine-1_2", 0, ["ant", "bee"], 1, "mine")
    Path("data/splits/mine-1_2/0/unlabelled.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"a list without an id; .*python pipeline/split\.py mine-1_2 0"):
        splits.read("mine-1_2", 0)
    Path("data/splits/mine-1_2/0/unlabelled.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"unlabelled\.txt: not a text file in UTF-8"):
        splits.read("mine-1_2", 0)


@pytest.mark.parametrize("file", ["labelled", "unlabelled"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("ant\n", ""), ("ant\n", "ant\nfly\n"), ("ant\nbee\n", "bee\nant\n"), ("sha256 of", "digest of")],
)
def test_a_list_that_was_edited_is_refused(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lists = {"labelled": ("cow", "dog"), "unlabelled": ("cow", "dog"), file: ("ant", "bee")}
    splits.write_lists("mine", 0, "family: mine", lists["labelled"], lists["unlabelled"])
    path = Path(f"data/splits/mine/0/{file}.txt")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"0/{file}\.txt: its ids are not .*split\.py mine 0") as refusal:
        splits.read("mine", 0)
    assert "\n" not in str(refusal.value)


def test_lists_of_the_same_images_are_one_set_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = splits.write_lists("mine", 0, "x", ("ant", "bee"), ("cow",))
    other = splits.write_lists("mine", 1, "x", ("bee", "ant"), ("cow",))
    third = splits.write_lists("mine", 2, "x", ("bee", "cow"), ("ant",))
    assert one.labelled_sha256 != other.labelled_sha256
    expected = hashlib.sha256(b"ant\nbee\n").hexdigest()
    assert one.labelled_set_sha256 == other.labelled_set_sha256 == expected
    assert third.labelled_set_sha256 != expected


def test_a_list_of_a_hundred_thousand_images_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [f"{number:06d}" for number in range(100_000)]
    begin = time.process_time()
    written = splits.write("mine", 0, ids, 50_000, "mine", without_mask=[f"x{each}" for each in ids])
    assert len(written.unlabelled) == 150_000
    assert time.process_time() - begin < 10  # quadratic work would take hours


def stage(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(miniature.PIPELINE / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stage_writes_the_split_and_says_so(mini_project: Path) -> None:
    done = stage("split", miniature.SPLIT, "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{miniature.SPLIT}, seed 3: 2 labelled, 6 unlabelled images\n"
    assert len(splits.read(miniature.SPLIT, 3).labelled) == 2


def test_the_stage_refuses_fewer_labelled_images_than_a_batch(mini_project: Path) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["datasets"]["mini"]["shares"]["1/8"] = {}
    tree["grids"]["mini"]["shares"] = ["1/4", "1/8"]
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    assert parameters.load().share("mini-1_8").labelled_count(8) == 1
    done = stage("split", "mini-1_8", "0")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: params.yaml: datasets: mini: shares: 1/8: 1 labelled images are fewer"
    )
    assert done.stderr.count("\n") == 1
    assert not Path("data/splits/mini-1_8").exists()


def test_the_stages_of_preparing_start_without_torch(mini_project: Path) -> None:
    for name, *arguments in (("split", miniature.SPLIT, "0"), ("download", "mini"), ("verify", "mini")):
        script = (
            f"import runpy, sys; sys.argv = {[name, *arguments]!r};"
            f"runpy.run_path({str(miniature.PIPELINE / f'{name}.py')!r}, run_name='__main__');"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
