"""YAML with the line of every key, so that an error can say where it is.

The only file that imports yaml. It knows nodes and lines, and nothing of what the keys mean.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_MOST = 100_000  # values of a file, its aliases unfolded: a few lines of aliases to aliases can stand for billions
# What PyYAML's constructors raise for a text that a tag calls something and is not: `!!bool x`, `!!timestamp x`, `!!int ""`.
_UNREADABLE = (ValueError, KeyError, AttributeError, IndexError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a file: a scalar, a list of nodes or a dict of nodes, and where it stands."""

    value: Any
    path: str
    line: int
    key: str
    failure: type[ValueError]

    def error(self, why: str) -> ValueError:
        """Make the error that says where this value stands and what is wrong with it."""
        place = f"{self.path}, line {self.line}" if self.line else self.path
        return self.failure(f"{place}: {self.key or 'the whole'} {why}.")

    def plain(self) -> Any:  # noqa: ANN401 - YAML holds anything
        """Give the value without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


def load(path: str | Path, failure: type[ValueError]) -> Node:
    """Read a file.

    Args:
        path: a YAML file; JSON is YAML too.
        failure: the error that a file raises which cannot be read.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise failure(f"{path} is no text in UTF-8 ({error}).") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if _unfolded(root, {}) > _MOST:
            raise failure(f"{path} has more than {_MOST:,} values, aliases counted each time; no configuration needs them.")
        constructor = yaml.SafeLoader("")
        return _node(root, str(path), "", failure, constructor)
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise failure(f"{path}, line {line}: no YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise failure(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
    except RecursionError as error:
        raise failure(f"{path} is nested too deeply or has an alias inside of itself; no configuration needs that.") from error


def of(value: object, path: str, failure: type[ValueError], key: str = "") -> Node:
    """Make nodes of values that came without a file, from JSON."""
    inner: Any = value
    if isinstance(value, dict):
        inner = {str(name): of(item, path, failure, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    elif isinstance(value, list):
        inner = [of(item, path, failure, f"{key}[{i}]") for i, item in enumerate(value)]
    return Node(inner, path, 0, key, failure)


def _unfolded(found: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values of a node, those of an alias each time it stands there."""
    if found is None or not isinstance(found.value, list):
        return 1
    if id(found) not in known:
        inner = [node for item in found.value for node in (item if isinstance(item, tuple) else (item,))]
        known[id(found)] = 1 + sum(_unfolded(node, known) for node in inner)
    return known[id(found)]


def _node(found: yaml.Node | None, path: str, key: str, failure: type[ValueError], constructor: yaml.SafeLoader) -> Node:
    if found is None:
        return Node(None, path, 1, key, failure)
    line = found.start_mark.line + 1
    value: Any
    if isinstance(found, yaml.MappingNode):
        value = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in found.value:
            if key_node.tag == _MERGE:
                merged = _merged(value_node, path, key, failure, constructor) | merged  # of several, the first stands above
                continue
            name = str(_scalar(key_node, Node(None, path, key_node.start_mark.line + 1, key, failure), constructor))
            inner = f"{key}.{name}" if key else name
            at = Node(None, path, key_node.start_mark.line + 1, inner, failure)
            if name in value:
                raise at.error("stands there twice")
            read = _node(value_node, path, inner, failure, constructor)
            value[name] = Node(read.value, path, at.line, inner, failure)
        value = merged | value
    elif isinstance(found, yaml.SequenceNode):
        value = [_node(item, path, f"{key}[{i}]", failure, constructor) for i, item in enumerate(found.value)]
    else:
        value = _scalar(found, Node(None, path, line, key, failure), constructor)
    return Node(value, path, line, key, failure)


def _scalar(found: yaml.Node, place: Node, constructor: yaml.SafeLoader) -> Any:  # noqa: ANN401 - YAML holds anything
    """Give what a scalar stands for: a date of month 13, or what a tag calls a number and is none, stands for nothing."""
    try:
        value = constructor.construct_object(found)
    except _UNREADABLE as error:
        raise place.error(f"is {found.value!r:.200}, which cannot be read ({error})") from error
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print one of thousands of digits
        raise place.error(f"is a number of {value.bit_length()} bits; 64 are the most")
    return value


def _merged(found: yaml.Node, path: str, key: str, failure: type[ValueError], constructor: yaml.SafeLoader) -> dict[str, Node]:
    """Read what `<<:` puts into a mapping: a mapping, or a list of them of which the first stands above the next."""
    read = _node(found, path, key, failure, constructor)
    value: dict[str, Node] = {}
    for part in read.value if isinstance(read.value, list) else [read]:
        if not isinstance(part.value, dict):
            raise read.error("merges by `<<` what is no mapping")
        value = part.value | value
    return value
