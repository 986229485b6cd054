"""A YAML document that remembers where each value stands, so that every complaint names file, line and remedy. Pure.

Values are never quoted in messages here: a password that was forgotten to be put in quotes is a YAML error too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from cdc.errors import ConfigError

YamlPath: TypeAlias = tuple[str | int, ...]
"""Names and list indexes from the document's root: `("regions", "eu", "url")`."""

MAX_DEPTH = 20
MAX_NODES = 100_000
"""Aliases can make a small text describe a huge tree; ours are small."""

_QUOTED = re.compile(r"'[^']{2,}'")
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the line of each path, counted from 1."""

    place: str
    data: Any
    lines: Mapping[YamlPath, int]

    def error(self, path: YamlPath, complaint: str) -> ConfigError:
        """`views.yaml:12: views.contact.mode: <complaint>`; a path that is not there is placed at its parent's line."""
        named = path_text(path)
        return ConfigError(f"{self.place}:{self.line(path)}: {named}{': ' if named else ''}{complaint}")

    def line(self, path: YamlPath) -> int:
        """The line where the value's name stands, or its nearest ancestor's."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(tuple(path[:length]))
            if line is not None:
                return line
        return 1


def parse_document(text: str, *, place: str) -> Document:
    """The document behind `text`; `place` names it in messages. Raises ConfigError, also for a name given twice."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        reader = _Reader(loader, place)
        data = None if root is None else reader.value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{place}:{mark.line + 1 if mark else 1}: {_yaml_problem(error)}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{place}:1: holds characters that YAML does not allow: save it as UTF-8 text") from None
    except RecursionError:
        raise ConfigError(f"{place}:1: is nested deeper than {MAX_DEPTH} levels: flatten it") from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(place=place, data=data, lines=reader.lines)


def path_text(path: Iterable[str | int]) -> str:
    """`regions.eu.url`, `columns[2]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    close = close or [longer for longer in names if name and longer.startswith(name)]
    if close:
        return f'did you mean "{close[0]}"?'
    return f"known here: {', '.join(names)}" if names else "nothing is known here"


class _Reader:
    """Turns YAML nodes into plain data, noting the line of every path."""

    def __init__(self, loader: yaml.SafeLoader, place: str) -> None:
        self._loader = loader
        self._place = place
        self._left = MAX_NODES
        self.lines: dict[YamlPath, int] = {}

    def value(self, node: yaml.Node, path: YamlPath) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > MAX_DEPTH:
            raise self._error(node, path, f"is larger than {MAX_NODES} values or {MAX_DEPTH} levels: make it smaller")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: YamlPath) -> dict[str, Any]:
        self._refuse_twice(node, path)
        self._loader.flatten_mapping(node)  # "<<: *defaults"; what the mapping says itself comes last and wins
        data: dict[str, Any] = {}
        for key, child in node.value:
            name = self._name(key, path)
            self.lines[*path, name] = key.start_mark.line + 1
            data[name] = self.value(child, (*path, name))
        return data

    def _refuse_twice(self, node: yaml.MappingNode, path: YamlPath) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self._name(key, path)
            line = key.start_mark.line + 1
            if name in first:
                complaint = f"is given twice, first on line {first[name]}: keep one of them"
                raise self._error(key, (*path, name), complaint)
            first[name] = line

    def _name(self, key: yaml.Node, path: YamlPath) -> str:
        if not isinstance(key, yaml.ScalarNode) or not isinstance(key.value, str):
            raise self._error(key, path, "has a list or a mapping where a name is expected: put the name in quotes")
        return key.value  # as written: YAML would read `on` or `1` as something else than a name

    def _scalar(self, node: yaml.Node, path: YamlPath) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, path, 'begins with "!", which YAML takes for a tag: put the value in quotes')
        if node.tag.endswith(":timestamp"):
            return node.value
        try:
            return self._loader.construct_object(node)
        except ValueError:
            raise self._error(node, path, "is not a number that can be read: put the value in quotes") from None

    def _error(self, node: yaml.Node, path: YamlPath, complaint: str) -> ConfigError:
        line = node.start_mark.line + 1
        return Document(place=self._place, data=None, lines={path: line}).error(path, complaint)


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not YAML"
    if "alias" in problem:
        return 'a value that begins with "*" is an alias in YAML: put it in quotes'
    if "cannot start any token" in problem:
        return f"{problem}: put the value in quotes, and indent with spaces"
    return f"is not YAML ({_QUOTED.sub('…', problem)}): check the indentation, colons and quotes around this line"
