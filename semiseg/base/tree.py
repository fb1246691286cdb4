"""Plain data, as YAML and JSON give it -> frozen dataclasses; what they do not know is refused by its key.

The conversion is written here because the machines that only train carry nothing beyond torch's own stack.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from semiseg.base.errors import UserError


def read(path: Path) -> Any:
    """The YAML file at ``path``. Raises UserError for one that is not there, is not YAML or repeats a key."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _NoKeyTwice)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; start from the project's folder") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


class _NoKeyTwice(yaml.SafeLoader):
    """YAML lets a key stand twice, and the last one wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def from_tree(kind: Any, tree: object, key: str) -> Any:
    """Convert plain YAML data to ``kind`` (a dataclass, or a type of its fields), strictly.

    ``key`` is the path of ``tree`` for error messages. Raises UserError on an unknown key, a missing one, a
    value of another type, or one that the dataclass refuses.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_tree(typing.cast(type, kind), tree, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # only "X | None" is used
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return None if tree is None else from_tree(inner, tree, key)
    if origin is tuple:
        return _tuple_from_tree(arguments, tree, key)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(tree, Mapping):
            raise UserError(f"{key}: expected a map of names, found {tree!r}")
        return {str(name): from_tree(arguments[1], value, f"{key}: {name}") for name, value in tree.items()}
    if kind is Any:
        return tree
    if kind is Fraction:
        return _fraction(tree, key)
    if kind is float and isinstance(tree, int | str) and not isinstance(tree, bool):
        try:
            return float(tree)  # YAML 1.1 reads 1e-4 as text
        except ValueError:
            pass
    if not isinstance(tree, kind) or (isinstance(tree, bool) and kind is not bool):
        raise UserError(f"{key}: expected {kind.__name__}, found {tree!r}")
    return tree


def _dataclass_from_tree(kind: type, tree: object, key: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{key}: expected a map of {kind.__name__} keys, found {tree!r}")
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
        raise UserError(f"{key}: expected a list, found {tree!r}")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(tree)
    if len(arguments) != len(tree):
        raise UserError(f"{key}: expected {len(arguments)} values, found {len(tree)}")
    return tuple(
        from_tree(kind, value, f"{key}: {place}")
        for place, (kind, value) in enumerate(zip(arguments, tree, strict=True))
    )


def _fraction(tree: object, key: str) -> Fraction:
    try:
        return Fraction(str(tree))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{key}: expected a share such as 1/8, found {tree!r}") from None
