"""A file of YAML becomes dataclasses, or is refused in one line that names the file and the key."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from semiseg.base.errors import UserError
from semiseg.base.tree import DEPTH, fraction, from_tree, read


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    words: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    share: Fraction | None = None
    flag: bool = False
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flag and not self.words:
            raise ValueError("words: none are given")


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("1_000", "1_000"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x1f", "0x1f"),
        ("1:30", "1:30"),
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("007.5", 7.5),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("2026-01-31", "2026-01-31"),
        ("1/8", "1/8"),
    ],
)
def test_a_plain_scalar_is_read_as_in_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    (found,) = read(written(tmp_path, f"key: {text}\n")).values()
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["010", "1:30", "yes", "0x10", "'4'", "4.0", "4.5", "true", "null", "[4]"])
def test_what_is_text_or_another_type_is_no_integer(tmp_path: Path, text: str) -> None:
    tree = read(written(tmp_path, f"size: {text}\n"))
    with pytest.raises(UserError, match=r"^here: size: expected int"):
        from_tree(Inner, tree, "here")


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", "1e999", "1e301", "yes", "'0.5'", "true"])
def test_a_number_is_finite(tmp_path: Path, text: str) -> None:
    tree = read(written(tmp_path, f"{{size: 1, rate: {text}}}\n"))
    with pytest.raises(UserError, match=r"^here: rate: expected"):
        from_tree(Inner, tree, "here")


@pytest.mark.parametrize("digits", [80, 5000])
def test_a_number_of_very_many_digits_is_refused_in_a_short_line(tmp_path: Path, digits: int) -> None:
    path = written(tmp_path, f"{{size: 1, rate: {'9' * digits}0000000000}}\n")
    if digits == 5000:
        assert len(refusal(path)) < 300
        return
    assert from_tree(Inner, read(path), "here").rate == pytest.approx(10.0 ** (digits + 10))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xef\xbb\xbfsize: 3\n")) == {"size": 3}


@pytest.mark.parametrize(
    "content", ["title: Stadt\n".encode("utf-16"), "title: Straße\n".encode("latin-1"), b"\xff\xfe\xfd"]
)
def test_another_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "UTF-8" in refusal(written(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        "a: &a\n  again: *a\n",
        "a: &a [1, *a]\n",
        "a: &a [*b]\nb: &b [*a]\n",
        f"a: {'[' * (DEPTH + 2)}{']' * (DEPTH + 2)}\n",
        f"a: {'[' * 5000}{']' * 5000}\n",
        "\n".join(
            ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
            + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
        ),
        "a: [1",
        "a: b: c",
        "\ta: 1",
        "a: \x00",
        "? [1, 2]\n: 3\n",
        "a: !!python/object/apply:os.getcwd []\n",
        "a: 1\na: 2\n",
        "a: {b: 1, b: 2}\n",
    ],
    ids=range(14),
)
def test_what_is_no_sound_yaml_is_refused(tmp_path: Path, content: str) -> None:
    refusal(written(tmp_path, content))


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "other: 1\nmap:\n  steps: 10\n  steps: 20\n"))
    assert "'steps'" in said
    assert "line 4" in said


def test_a_merged_key_may_be_given_anew(tmp_path: Path) -> None:
    tree = read(written(tmp_path, "base: &base {size: 1, rate: 2}\nown: {<<: *base, rate: 3}\n"))
    assert tree["own"] == {"size": 1, "rate": 3}


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.yaml")


def test_a_tree_becomes_dataclasses() -> None:
    tree = {
        "inner": {"size": 3, "rate": 2},
        "words": ["a", "b"],
        "pair": [1, 2.5],
        "share": "1/8",
        "flag": True,
        "counts": {7: 1},
        "options": {"any": [1, {"b": None}]},
    }
    assert from_tree(Outer, tree, "here") == Outer(
        Inner(3, 2.0), ("a", "b"), (1.0, 2.5), Fraction(1, 8), True, {"7": 1}, {"any": [1, {"b": None}]}
    )
    assert from_tree(Outer, {"inner": {"size": 3}, "share": None}, "here") == Outer(Inner(3))


@pytest.mark.parametrize(
    ("tree", "key", "named"),
    [
        ([], "here: ", "Outer"),
        ({}, "here: ", "'inner'"),
        ({"inner": {"size": 1}, "innner": 1}, "here: ", "'innner'"),
        ({"inner": {}}, "here: inner: ", "'size'"),
        ({"inner": {"size": True}}, "here: inner: size: ", "True"),
        ({"inner": {"size": 1}, "words": "ab"}, "here: words: ", "'ab'"),
        ({"inner": {"size": 1}, "words": ["a", 1]}, "here: words: 1: ", "1"),
        ({"inner": {"size": 1}, "pair": [1, 2, 3]}, "here: pair: ", "3"),
        ({"inner": {"size": 1}, "share": "eighth"}, "here: share: ", "'eighth'"),
        ({"inner": {"size": 1}, "flag": 1}, "here: flag: ", "1"),
        ({"inner": {"size": 1}, "counts": {"a": "b"}}, "here: counts: a: ", "'b'"),
        ({"inner": {"size": 1}, "counts": [1]}, "here: counts: ", "[1]"),
        ({"inner": {"size": 1}, "flag": True}, "here: words: ", "none"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tree: object, key: str, named: str) -> None:
    with pytest.raises(UserError) as raised:
        from_tree(Outer, tree, "here")
    assert str(raised.value).startswith(key)
    assert named in str(raised.value)


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(UserError) as raised:
        from_tree(Inner, {"size": "x" * 10_000}, "here")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "value"), [("1/8", "1/8"), ("2/16", "1/8"), ("0.125", "1/8"), ("1", "1"), ("0", "0")]
)
def test_a_share_is_a_fraction(text: str, value: str) -> None:
    assert fraction(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "1/0", "-1/8", "1/", "/8", "1e-1", "1 / 8", "١/٨", "1/8\n", "0." + "1" * 99]
)
def test_what_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1/8"):
        fraction(text)
