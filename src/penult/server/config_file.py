"""Read a server's configuration from YAML. Errors state the file, the line and the key.

This is the only module that imports yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from penult.server.config import ConfigError, ServerConfig, Settings

Section = TypeVar("Section", bound=Settings)
Server = TypeVar("Server", bound=ServerConfig)
Location = tuple[str | int, ...]
"""The keys from the top of a file down to a value, as in pydantic's errors."""

_MERGE = "tag:yaml.org,2002:merge"
_MAX_VALUES = 100_000  # per file, aliases counted each time: a few lines of nested aliases can expand to billions
_MAX_BITS = 64  # Python refuses to print an integer of thousands of digits
# Exceptions that PyYAML raises for a text that does not fit its tag: `!!bool x`, `!!timestamp x`, `!!int ""`.
_UNREADABLE = (ValueError, KeyError, AttributeError, IndexError, TypeError, OverflowError)
_ADVICE = "Check the indentation (spaces, not tabs), the colons and the quotes of this line and the one before."
_KINDS = {"tuple_type": "it must be a list", "model_type": "it must be a mapping", "dict_type": "it must be a mapping",
          "mapping_type": "it must be a mapping"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file, and the line of each.

    Attributes:
        source: the file's path, or another name of the source of the values; may be empty.
        values: plain dicts, lists and scalars.
        lines: the line of each value. Empty: the values are not from a file.
    """

    source: str
    values: Any
    lines: Mapping[Location, int] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Return the file, the line and the key of a value, without those that are unknown."""
        at = location
        while at and at not in self.lines:
            at = at[:-1]
        line = f", line {self.lines[at]}" if at in self.lines else ""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
        return ": ".join(filter(None, (f"{self.source}{line}", key)))

    def error(self, location: Location, message: str) -> ConfigError:
        """Return the error for an invalid value."""
        return ConfigError(f"{self.place(location)} {message}.")

    def validate(self, kind: type[Section]) -> Section:
        """Return the values as a section of a configuration.

        Raises:
            ConfigError: a key or a value is invalid.
        """
        try:
            return kind.model_validate(self.values, context={"file": self.source})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self.error(*_explain(dict(first))) from None  # pydantic's own message has no line number


def load(path: str | Path, kind: type[Server]) -> tuple[Server, Document]:
    """Load the configuration from a file; return it with the file's values and lines.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not YAML, or has an invalid key or value.
    """
    document = read(path)
    if isinstance(document.values, dict) and "api_key" in document.values:
        raise document.error(
            ("api_key",), "is a secret, which this file must not contain; pass --api-key or set PENULT_API_KEY"
        )
    config = document.validate(kind)
    for number, endpoint in enumerate(config.endpoints):
        endpoint.set_place(document.place(("endpoints", number)))
    return config, document


def override(config: Section, values: Mapping[str, Any]) -> Section:
    """Return a section of a configuration with these fields replaced. Values of None are skipped.

    Raises:
        ConfigError: a value is invalid.
    """
    return Document("", config.stated() | {name: value for name, value in values.items() if value is not None}).validate(
        type(config)
    )


def read(path: str | Path) -> Document:
    """Read a YAML file (JSON is YAML too).

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not YAML, has a duplicate key, or has too many values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"The file {path} does not exist.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}). Pass a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}).") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if _count(root, {}) > _MAX_VALUES:
            raise ConfigError(
                f"{path} has more than {_MAX_VALUES:,} values, counting every use of an alias. Remove the aliases."
            )
        reader = _Reader(str(path))
        values = {} if root is None else reader.value(root, ())
        return Document(str(path), values, reader.lines)
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(f"{path}, line {line}: not valid YAML: {error.problem or error.context}. {_ADVICE}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply, or an alias contains itself. Remove the nesting.") from error


def _explain(error: dict[str, Any]) -> tuple[Location, str]:
    """Return the location and the message of one of pydantic's errors."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if kind == "at_key":
        return (*location, *context["at"]), context["message"]
    if kind == "missing":
        return location, "is missing"
    return location, f"is {error['input']!r:.200}; {_KINDS.get(kind, message)}"


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values of a node, counting those of an alias each time."""
    if node is None or not isinstance(node.value, list):
        return 1
    if id(node) not in known:
        inner = [one for item in node.value for one in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(one, known) for one in inner)
    return known[id(node)]


class _Reader:
    """Converter of PyYAML's nodes to plain values; it records the line of each."""

    def __init__(self, path: str) -> None:
        self.lines: dict[Location, int] = {}
        self._path = path
        self._constructor = yaml.SafeLoader("")

    def value(self, node: yaml.Node, at: Location) -> Any:  # noqa: ANN401 - YAML allows any value
        """Return the value of a node."""
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*at, number)) for number, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, at)
        pairs = self._pairs(node, at)
        self.lines |= {(*at, name): key.start_mark.line + 1 for name, (key, _) in pairs.items()}
        return {name: self.value(inner, (*at, name)) for name, (_, inner) in pairs.items()}

    def _pairs(self, node: yaml.MappingNode, at: Location) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the keys and values of a mapping: its own keys override those of `<<`, whose earlier mappings override later.

        PyYAML's own merge is not used: in 6.0.4, which of two keys wins depends on the identity of strings.
        """
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, inner in node.value:
            if key.tag == _MERGE:
                for part in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    if not isinstance(part, yaml.MappingNode):
                        raise self._error(key, (*at, "<<"), "must merge a mapping or a list of mappings")
                    merged = self._pairs(part, at) | merged
                continue
            name = str(self._scalar(key, at))
            if name in own:
                raise self._error(key, (*at, name), "is a duplicate key")
            own[name] = (key, inner)
        return merged | own

    def _scalar(self, node: yaml.Node, at: Location) -> Any:  # noqa: ANN401 - YAML allows any value
        try:
            value = self._constructor.construct_object(node)
        except _UNREADABLE as error:
            raise self._error(node, at, f"is {node.value!r:.200}, which cannot be parsed ({error})") from error
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise self._error(node, at, f"is an integer of {value.bit_length()} bits; the limit is {_MAX_BITS}")
        return value

    def _error(self, node: yaml.Node, at: Location, message: str) -> ConfigError:
        return Document(self._path, None, {at: node.start_mark.line + 1}).error(at, message)
