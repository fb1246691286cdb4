"""Any params.yaml is loaded or refused in one line, in less than two seconds."""

import copy
import dataclasses
import math
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semiseg import stages
from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Protocol
from semiseg.base.tree import from_tree
from semiseg.data import sources
from semiseg.methods import contract
from semiseg.pretraining import contract as pretraining
from tests import miniature
from tests.pretraining import recipes

Way = tuple[str | int, ...]
"""Keys and places that lead to a value of the tree."""

SECONDS = 2.0  # of processor time, which a busy machine does not lengthen
seeded = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# Small, because it is read hundreds of times, with methods whose checks look at the protocol.
TREE: dict[str, Any] = {
    **miniature.PARAMS,
    "grids": {"mini": {**miniature.PARAMS["grids"]["mini"], "recipes": ["cmb", "dcc", "cps-mixed"]}},
    "recipes": {
        "cmb": {},
        "dcc": {},
        "cps": {"mixed": {"cutmix": {"area": [0.25, 0.5]}, "evaluation": {"recalibrate": 2}}},
    },
    "protocols": {
        "mini": {
            **miniature.PROTOCOL,
            "methods": {name: miniature.OPTIONS[name] for name in ("cmb", "dcc", "cps")},
        }
    },
    "starts": {"mini": {"random": "none", "some": "pretrained/some"}},
    "pretraining": {"some": recipes.tree("densecl")},
}

NUMBERS = st.sampled_from(
    [0, 1, -1, 3, 10**9, 10**18, 10**300, -(10**30), 0.0, -0.5, 1.5, 1e-300, 1e300, math.nan, math.inf]
)
TEXTS = st.sampled_from(
    [
        *("", " ", "1/8", "0/0", "1/0", "1e-99999999", "9" * 400, "..", "~nobody/x", "con", "a\nb", "a\x00b"),
        *("\ud800", "é", "道路", "\u202e", "x" * 400, "x" * 5000, "<b>", "${x}", "{{x}}", "/" * 300),
        *("timm:", "timm:vit_patch14_", "timm:../x"),
    ]
)
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none(), st.text(max_size=8))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.one_of(TEXTS, NUMBERS), SCALARS, max_size=2),
    st.just([[[[]]]]),
)


def ways(tree: object, way: Way = ()) -> Iterator[Way]:
    """Yield the way to every value below ``tree``."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else [])
    for key, value in entries:
        yield (*way, key)
        yield from ways(value, (*way, key))


def changed(way: Way, change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """Return TREE after ``change`` of the map or list that holds the last key of ``way``, and that key."""
    tree = copy.deepcopy(TREE)
    place: Any = tree
    for key in way[:-1]:
        place = place[key]
    change(place, way[-1])
    return tree


def refusal(text: str) -> str | None:
    """Load and check a file as pipeline/check.py does; return the refusal, or None for a good file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_bytes(text.encode(errors="surrogatepass"))
        started = time.process_time()
        said = None
        try:
            params = parameters.load(path)
            sources.check_options(params.datasets)
            contract.check_options(params)
            pretraining.check_options(params)
            for _, ingredients in stages.ingredients(params):
                ingredients.encode()
        except UserError as error:
            said = str(error).replace(folder, "")
        assert time.process_time() - started < SECONDS
    assert said is None or said.isprintable()
    assert said is None or len(said) < 5000
    return said


def named(way: Way, said: str) -> bool:
    """Return whether a refusal names a last key of ``way``; "protocol" stands for "protocols" too."""
    return any(str(key).removesuffix("s") in said for key in way[-3:] if isinstance(key, str))


def dumped(tree: object) -> str:
    return yaml.safe_dump(tree, sort_keys=False)


def test_the_tree_of_these_tests_is_a_good_one() -> None:
    assert refusal(dumped(TREE)) is None


@given(st.sampled_from(list(ways(TREE))), VALUES)
@settings(seeded, max_examples=60)
def test_another_value_is_loaded_or_its_key_is_named(way: Way, value: object) -> None:
    def replace(place: Any, key: Any) -> None:
        place[key] = value

    said = refusal(dumped(changed(way, replace)))
    assert said is None or named(way, said)


@given(st.sampled_from(list(ways(TREE))))
@settings(seeded, max_examples=30)
def test_a_value_that_is_gone_has_a_default_or_its_key_is_named(way: Way) -> None:
    def delete(place: Any, key: Any) -> None:
        del place[key]

    said = refusal(dumped(changed(way, delete)))
    assert said is None or named(way, said)


@given(st.sampled_from([way for way in ways(TREE) if isinstance(way[-1], str)]), st.one_of(TEXTS, NUMBERS))
@settings(seeded, max_examples=40)
def test_another_key_is_loaded_or_named(way: Way, other: object) -> None:
    def rename(place: Any, key: Any) -> None:
        place[other] = place.pop(key)

    said = refusal(dumped(changed(way, rename)))
    shown = str(UserError(str(other)))[:50]
    assert said is None or shown in said or named(way, said)


LINES = dumped(TREE).splitlines(keepends=True)
PIECES = st.sampled_from(
    [
        *(
            "&a ",
            "*a ",
            "<<: *a",
            "<<: {",
            "? ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ": ",
            "#",
            "|\n",
            "%",
            "'",
            '"',
            "\t",
        ),
        *(
            "!!int x",
            "!!set {a}",
            "!!python/object:os.x ",
            "!!timestamp 1",
            "!!binary x",
            "!!omap ",
            "010",
            "0x",
        ),
        *("\0", "\u2028", "---\n", "...\n", "\ufeff", "\ud800"),
    ]
)


@given(st.integers(0, len(LINES) - 1), st.integers(0, 40), PIECES, st.booleans())
@settings(seeded, max_examples=50)
def test_a_file_with_a_slip_of_the_pen_is_loaded_or_named(
    number: int, place: int, piece: str, twice: bool
) -> None:
    lines = list(LINES)
    line = lines[number]
    lines[number] = line[:place] + piece + line[place:]
    if twice:
        lines.insert(number, line)
    said = refusal("".join(lines))
    assert said is None or "params.yaml" in said


def merged(levels: int, width: int) -> str:
    """Return maps that each merge the one before ``width`` times."""
    text = "x0: &x0 {a: 1}\n"
    for level in range(1, levels):
        text += f"x{level}: &x{level} {{<<: [{', '.join([f'*x{level - 1}'] * width)}], k{level}: 1}}\n"
    return text


@pytest.mark.parametrize(
    "extra",
    [
        merged(8, 10),
        "x: &x {<<: *x}\n",
        "x: &x [*x]\n",
        "x: " + "[" * 2000,
        "x: " + "{a: " * 2000,
        "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12)).replace("*x0", "1"),
        "x: " + "9" * 10**6 + "\n",
        "x" * 10**5 + ": 1\n",
        "x: '" + "y" * 10**6 + "'\n",
        "".join(f"x{n}: 1\n" for n in range(5000)),
    ],
    ids=["merges", "merges itself", "in itself", "lists", "maps", "aliases", "digits", "key", "text", "keys"],
)
def test_an_attack_is_refused_in_time(extra: str) -> None:
    assert refusal(dumped(TREE) + extra) is not None


# --- options of the methods ---------------------------------------------------------------------------------


def options(kind: Any) -> Iterator[tuple[str, ...]]:
    """Yield the way to every option of a Config, through the dataclasses that it holds."""
    for name, hint in typing.get_type_hints(kind).items():
        yield (name,)
        for each in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(each):
                yield from ((name, *way) for way in options(each))


OPTIONS = [(method, way) for method in miniature.METHODS for way in options(contract.module(method).Config)]
PROTOCOL = from_tree(Protocol, {**miniature.PROTOCOL, "steps": 5000}, "protocol")  # that any default fits
ODD = st.one_of(SCALARS, st.lists(NUMBERS, min_size=1, max_size=4))


def option_refusal(method: str, tree: dict[str, Any]) -> str | None:
    try:
        config = contract.configured(method, tree, PROTOCOL)
        contract.views(method, config, PROTOCOL.geometry)
    except UserError as error:
        return str(error)
    return None


@given(st.sampled_from(OPTIONS), ODD)
@settings(seeded, max_examples=200)
def test_an_option_is_taken_or_named(option: tuple[str, tuple[str, ...]], value: object) -> None:
    method, way = option
    tree: Any = value
    for key in reversed(way):
        tree = {key: tree}
    said = option_refusal(method, tree)
    assert said is None or (said.isprintable() and any(key in said for key in way))
