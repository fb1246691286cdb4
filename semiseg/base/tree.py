"""Convert plain data, as YAML and JSON give it, into frozen dataclasses, and refuse the rest by its key.

The conversion is written here because the machines that only train have nothing beyond torch's own stack.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from semiseg.base.errors import UserError

DEPTH, NODES = 20, 100_000  # limits of a file; more is a mistake or an attack
DIGITS = 300  # most digits of an integer; a float has no more
LONGEST = 1000  # characters of a text


def read(path: Path) -> Any:
    """Return the data of a YAML file.

    Numbers and booleans follow YAML 1.2: 010 and 1:30 are text, and so are yes and no. Keys are text, as they
    stand there. Raises UserError for a file that does not exist, is not UTF-8 or YAML, repeats a key,
    contains itself, or holds a text that is very long or cannot be printed.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; start from the project's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    for count, (key, node, depth) in enumerate(_nodes(tree, str(path))):
        if depth > DEPTH or count > NODES:
            raise UserError(f"{path}: nested more than {DEPTH} levels deep, or an alias contains itself")
        for text in node if isinstance(node, Mapping) else [node]:
            if isinstance(text, str) and not text.isprintable():
                raise UserError(f"{key}: {_shown(text)} holds a character that cannot be printed; remove it")
            if isinstance(text, str) and len(text) > LONGEST:
                raise UserError(f"{key}: {_shown(text)} has more than {LONGEST} characters; shorten it")
    return tree


def _nodes(tree: object, key: str, depth: int = 0) -> Iterator[tuple[str, object, int]]:
    """Yield every node with its key and its depth, the deepest at most DEPTH + 1."""
    yield key, tree, depth
    if depth <= DEPTH and isinstance(tree, Mapping | list):
        for name, each in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _nodes(each, f"{key}: {name}", depth + 1)


class _Loader(yaml.SafeLoader):
    """Plain scalars as in YAML 1.2's core schema; keys are text, and none stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what ``<<`` names, as SafeLoader does, but without the values that others replace.

        SafeLoader keeps these, so that maps which merge each other again and again grow without bound.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be text, not a list or a map", key)
            if key.value in seen:
                raise _refusal(f"'{key.value}' stands twice", key)
            seen.add(key.value)
        super().flatten_mapping(node)
        node.value = list({key.value: (key, value) for key, value in node.value}.values())


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# PyYAML tries these in order; whatever matches none is text.
RESOLVERS = {
    "null": ("~nN", r"~|null|Null|NULL|"),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9][0-9]*)"),
    "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    "merge": ("<", r"<<"),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_first, _pattern) in RESOLVERS.items():
    _characters = [*_first, *([""] if _tag == "null" else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _characters)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Convert a YAML 1.2 integer."""
    if len(node.value) > DIGITS:
        raise _refusal(f"a number of {len(node.value)} digits", node)
    return int(node.value)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float | str:
    """Convert a YAML 1.2 float; digits with a leading zero stay text."""
    if re.fullmatch(r"[-+]?0[0-9]+", node.value):
        return str(node.value)
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def from_tree(kind: Any, tree: object, key: str) -> Any:
    """Convert plain data to ``kind``: a dataclass, or the type of one of its fields.

    ``key`` names ``tree`` in error messages. Raises UserError for an unknown or missing key, a value of
    another type, a number that is not finite, and a value that the dataclass refuses.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_tree(typing.cast(type, kind), tree, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(kind for kind in arguments if kind is not types.NoneType)  # only "X | None" is used
        return None if tree is None else from_tree(inner, tree, key)
    if origin is tuple:
        return _tuple_from_tree(arguments, tree, key)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(tree, Mapping):
            raise UserError(f"{key}: expected a map of names, found {_shown(tree)}")
        return {str(name): from_tree(arguments[1], value, f"{key}: {name}") for name, value in tree.items()}
    if kind is Any:
        return tree
    if kind is Fraction:
        try:
            return fraction(str(tree))
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
    if kind is float and isinstance(tree, int | float) and not isinstance(tree, bool):
        if not math.isfinite(tree) or abs(tree) > 1e300:
            raise UserError(f"{key}: expected a finite number, found {_shown(tree)}")
        return float(tree)
    if not isinstance(tree, kind) or (isinstance(tree, bool) and kind is not bool):
        raise UserError(f"{key}: expected {kind.__name__}, found {_shown(tree)}")
    return tree


def fraction(text: str) -> Fraction:
    """Convert "1/8", "0.125" or "1". Raises ValueError for anything else."""
    if re.fullmatch(r"[0-9]{1,9}(/0*[1-9][0-9]{0,8}|\.[0-9]{1,9})?", text, re.ASCII):
        return Fraction(text)
    raise ValueError(f"expected a share such as 1/8, found {_shown(text)}")


def _shown(tree: object, most: int = 60) -> str:
    """Show a value in an error, cut short."""
    text = repr(tree) if not isinstance(tree, int) or abs(tree) < 10**most else "a number of many digits"
    return text if len(text) <= most else f"{text[:most]}…"


def _dataclass_from_tree(kind: type, tree: object, key: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{key}: expected a map of {kind.__name__} keys, found {_shown(tree)}")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    for name in tree:
        if name not in fields:
            raise UserError(f"{key}: unknown key '{name}'; known are {', '.join(fields) or 'none'}")
    for name, each in fields.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in tree:
            raise UserError(f"{key}: missing key '{name}'")
    hints = typing.get_type_hints(kind)
    values = {name: from_tree(hints[name], value, f"{key}: {name}") for name, value in tree.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def _tuple_from_tree(arguments: tuple[Any, ...], tree: object, key: str) -> tuple[Any, ...]:
    if not isinstance(tree, list):
        raise UserError(f"{key}: expected a list, found {_shown(tree)}")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(tree)
    if len(arguments) != len(tree):
        raise UserError(f"{key}: expected {len(arguments)} values, found {len(tree)}")
    return tuple(
        from_tree(kind, value, f"{key}: {place}")
        for place, (kind, value) in enumerate(zip(arguments, tree, strict=True))
    )
