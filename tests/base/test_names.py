import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.names import check_name, check_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["a", "9", "voc", "cmb-no_attention", "mine.v2", "A_", "a..b", "x" * 100])
def test_what_a_name_may_be(name: str) -> None:
    check_name("grids", name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "...", "-a", "_a", ".hidden", "a.", "a b", " a", "a\n", "a\0", "x" * 101),
        *("splits/", "a/b", "/a", "../a", "a\\b", "C:", "~", "a*", "a'b", "{a}", "$a", "é", "ａ", "道"),
        *("con", "CON", "nul.txt", "Aux", "com1", "LPT9.a.b"),
    ],
)
@pytest.mark.parametrize("kind", ["datasets", "grids", "recipes", "protocols", "shares"])
def test_what_a_name_may_not_be(kind: str, name: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_name(kind, name)
    assert str(refusal.value).startswith(f"params.yaml: {kind}: {name!r}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("datasets", name) for name in ("archives", "splits", "ingredients", "Archives", "SPLITS")),
        *(("grids", name) for name in ("all", "train", "Report")),
    ],
)
def test_the_suites_own_folders_and_stages_are_reserved(kind: str, name: str) -> None:
    with pytest.raises(UserError, match="keeps this name"):
        check_name(kind, name)
    check_name("recipes", name)


def test_names_that_differ_in_case_alone_are_refused() -> None:
    check_names("datasets", ["mine", "mine-2", "voc"])
    with pytest.raises(UserError, match="'mine' and 'Mine'"):
        check_names("datasets", ["mine", "voc", "Mine"])


@given(st.text(max_size=12))
def test_an_accepted_name_is_one_part_of_a_path(name: str) -> None:
    try:
        check_name("recipes", name)
    except UserError:
        return
    assert Path("data", name).name == name
    assert re.fullmatch(r"[\x21-\x7e]+", name)


def test_the_names_of_params_yaml_are_accepted() -> None:
    params = parameters.load(ROOT / "params.yaml")
    for kind in ("datasets", "protocols", "recipes", "grids"):
        check_names(kind, getattr(params, kind))
