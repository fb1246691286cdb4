"""Files are whole or absent."""

from pathlib import Path

import pytest

from semiseg.base.files import read_json, write_text, written_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one\n")
    write_text(path, "two\r\n")
    assert path.read_bytes() == b"two\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"a\.txt'$") as refused:
        write_text(tmp_path / "a.txt", "text")
    assert refused.value.filename == str(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_that_is_none_or_gone_reads_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    for content, value in {b"[1]": [1], b"": None, b"\xff": None, b"{": None}.items():
        path.write_bytes(content)
        assert read_json(path) == value
