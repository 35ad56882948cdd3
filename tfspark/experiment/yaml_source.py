"""Read YAML with positions: the values of a file, their lines, and the changes by ``--set``.

Used by `tfspark.experiment.config` on the driver. Pure except for reading the file: no Spark, no TensorFlow. The
dialect is YAML 1.2's core schema on PyYAML's parser, so ``1e-3`` is a number and ``no`` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tfspark.errors import ConfigError

Key = tuple[str | int, ...]
"""The position of a value: ``("data", "features", "image", "shape", 0)``; the document itself is ``()``."""

_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration.

    Attributes:
        place: ``file:line``, or the ``--set`` option as it was given.
        key: dotted key; empty for the whole document.
        text: what was expected, and what it got.
    """

    place: str
    key: str
    text: str

    def __str__(self) -> str:
        """Return the message for the user."""
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


@dataclass
class Document:
    """A YAML document as plain Python values, with the position of each value."""

    path: str
    values: dict[Any, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Return the position of `key`, or else that of the nearest section around it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.path)

    def report(self, key: Key, text: str) -> None:
        """Record a problem with the value at `key`."""
        self.problems.append(Problem(self.place(key), dotted(key), text))


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Read a whole number in base ten: ``010`` is ten, not eight."""
        return int(self.construct_scalar(node))


class Dumper(yaml.SafeDumper):
    """Writes YAML that `Loader` reads back as the same values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values each time, instead of a reference to the first."""
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Quote Unicode line breaks, which PyYAML would write unquoted and then read as spaces."""
        style = '"' if set(data) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


for _name, _pattern, _first in _SCALARS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_decimal)
Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))
Dumper.add_representer(str, Dumper.represent_text)


def dotted(key: Key) -> str:
    """Return a key in the form of ``--set``."""
    return ".".join(str(part) for part in key)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Returns:
        The document; its problems include duplicate keys and values that YAML cannot build.

    Raises:
        ConfigError: the file cannot be read at all: it is missing, not UTF-8, not a mapping, or has bad syntax.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text; {error}; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable YAML file; {error.strerror}") from None
    return parse_document(text, str(path))


def parse_document(text: str, path: str) -> Document:
    """Read YAML text; see `read_document`."""
    loader = None
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path}:1: expected a mapping with keys such as name, model and data, got {_kind(root)}"
            )
        document = Document(path, places={(): f"{path}:{root.start_mark.line + 1}"})
        _Walk(loader, document).mapping(root, (), ())
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_error(error, path)) from None
    finally:
        if loader is not None:
            loader.dispose()
    return document


def override(document: Document, options: Sequence[str], takes_dots: Callable[[Key], bool]) -> None:
    """Apply ``--set`` options in the order given.

    Args:
        document: changed in place; an option that cannot be applied is added to its problems.
        options: ``a.b=value`` each, the value in YAML.
        takes_dots: returns whether a section's own keys have dots, as Spark's settings do.
    """
    for option in options:
        place = f"--set {option}"
        try:
            key, value = _parse_option(option, takes_dots)
            put(document, key, value, place)
        except ConfigError as error:
            document.problems.append(Problem(place, "", str(error)))


class _Walk:
    """Converts nodes to values and records the line of each."""

    def __init__(self, loader: Loader, document: Document):
        self.loader = loader
        self.document = document

    def mapping(self, node: yaml.MappingNode, key: Key, inside: tuple[int, ...]) -> dict[Any, Any]:
        self._find_duplicates(node, key)
        self.loader.flatten_mapping(node)
        values: dict[Any, Any] = {} if key else self.document.values
        for key_node, value_node in node.value:
            here = (*key, self._key(key_node))
            self._stand(here, key_node)
            values[here[-1]] = self._value(value_node, here, inside)
        return values

    def _key(self, node: yaml.Node) -> str | int:
        name = self.loader.construct_object(node, deep=True) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(name, str | int):
            raise yaml.MarkedYAMLError(
                problem="a key must be a word or a number", problem_mark=node.start_mark
            )
        return name

    def _value(self, node: yaml.Node, key: Key, inside: tuple[int, ...]) -> Any:
        if id(node) in inside:
            raise yaml.MarkedYAMLError(problem="the anchor contains itself", problem_mark=node.start_mark)
        inside = (*inside, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*key, index), inside) for index, item in enumerate(node.value)]
        return self.loader.construct_object(node, deep=True)

    def _item(self, node: yaml.Node, key: Key, inside: tuple[int, ...]) -> Any:
        self._stand(key, node)
        return self._value(node, key, inside)

    def _stand(self, key: Key, node: yaml.Node) -> None:
        self.document.places[key] = f"{self.document.path}:{node.start_mark.line + 1}"

    def _find_duplicates(self, node: yaml.MappingNode, key: Key) -> None:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1
            if name in first_lines and key_node.tag != "tag:yaml.org,2002:merge":
                text = f"given twice, first on line {first_lines[name]}; keep one of the two"
                self.document.problems.append(
                    Problem(f"{self.document.path}:{line}", dotted((*key, name)), text)
                )
            first_lines.setdefault(name, line)


def _parse_option(option: str, takes_dots: Callable[[Key], bool]) -> tuple[Key, Any]:
    name, equals, text = option.partition("=")
    parts = tuple(name.strip().split("."))
    if not equals or not all(parts):
        raise ConfigError("expected key=value with a dotted key, for example --set train.epochs=3")
    return _join_dotted(parts, takes_dots), parse_value(text)


def parse_value(text: str) -> Any:
    """Read a value as YAML.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"expected a YAML value after '=': {_one_line(error)}") from None


def _join_dotted(parts: tuple[str, ...], takes_dots: Callable[[Key], bool]) -> Key:
    for end in range(1, len(parts) - 1):
        if takes_dots(parts[:end]):
            return (*parts[:end], ".".join(parts[end:]))
    return parts


def put(document: Document, key: Key, value: Any, place: str) -> None:
    """Set a value literally: a text stays a text, even if YAML would read it as a number.

    Raises:
        ConfigError: a part of `key` is not a section.
    """
    section = document.values
    for end, part in enumerate(key[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            document.places[key[:end]] = place
        if not isinstance(section[part], dict):
            raise ConfigError(
                f"{dotted(key[:end])} is {section[part]!r} and has no keys of its own; "
                f"set {dotted(key[:end])} itself"
            )
        section = section[part]
    section[_same_key(section, key[-1])] = value
    _move(document.places, key, place)


def _same_key(section: dict[Any, Any], name: str | int) -> Any:
    """Return the section's own form of a key: ``--set a.0=x`` means the number 0 if the section has that key."""
    return next((known for known in section if str(known) == name), name)


def _move(places: dict[Key, str], key: Key, place: str) -> None:
    for old in [old for old in places if old[: len(key)] == key]:
        del places[old]
    places[key] = place


def _syntax_error(error: yaml.YAMLError, path: str) -> str:
    return f"{path}{_position(error)}: bad YAML: {_one_line(error)}"


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f":{mark.line + 1}, column {mark.column + 1}" if mark else ""


def _one_line(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error).splitlines()[0]


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"the value {node.value!r}"
