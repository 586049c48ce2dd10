"""Spaces declared in YAML.

Read by a loader of our own, since YAML 1.1 takes ``1e-6`` for text, ``yes`` for true, ``3:2`` for 182 and ``010`` for 8, and keeps the
last of repeated keys: here numbers are decimal, only true and false are that, null is null, and all else is text. Errors name the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from llmpp_core.space.choice import MOST_VALUES, Choice, is_number, meant
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.space.structure import SpaceError

_KEYS = ("space", "network", "constants", "choices", "rules", "costs")
_MOST_DEPTH = 20
_CHOICE_KEYS = ("values", "range", "steps", "log", "per", "when", "means", "order", "before", "text", "bounds")


class _Loader(yaml.SafeLoader):
    """Only true, false, null, decimal integers and floats are other than text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|", ["n", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class Tree:
    """A YAML text that knows the line of everything in it.

    Parameters
    ----------
    text : str
    name : str
        Of the file, for errors.

    Attributes
    ----------
    value : Any
        What the text says.

    Raises
    ------
    ValueError
        ``name:line: reason``, if it is no YAML, or says something twice.
    """

    def __init__(self, text: str, name: str):
        self.name = name
        try:
            depth = 0
            for event in yaml.parse(text, _Loader):
                # Aliases of aliases of lists would be read for ever, and thousands of open brackets for minutes.
                if getattr(event, "anchor", None):
                    raise yaml.MarkedYAMLError(problem="found an alias or anchor", problem_mark=event.start_mark)  # type: ignore[arg-type]
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > _MOST_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ValueError(f"{name}:{line}: lists in lists, more than {_MOST_DEPTH} deep")
            self._root: Any = yaml.compose(text, _Loader)
            self._lines: dict[tuple[Any, ...], int] = {}
            self.value = self._walk(self._root, ()) if self._root is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = (mark.line if mark else 0) + 1
            problem = str(error.problem).replace("character '\\t' that cannot start any token", "a tab")
            odd = any(word in problem for word in ("alias", "anchor", "cannot start any token"))
            quotes = "text that begins with * & ! % { [ needs quotes" if odd else ""
            raise ValueError(f"{name}:{line}: {quotes or f'not valid YAML: {problem if error.problem else error.context}'}") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None

    def at(self, where: Sequence[Any]) -> str:
        """Return ``name:line`` of what a path leads to, or of the nearest above it."""
        where = tuple(where)
        while where and where not in self._lines:
            where = where[:-1]
        return f"{self.name}:{self._lines.get(where, 1)}"

    def _walk(self, node: Any, path: tuple[Any, ...]) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        if node.tag not in {f"tag:yaml.org,2002:{tag}" for tag in ("map", "seq", "str", "int", "float", "bool", "null")}:
            raise ValueError(f"{self.name}:{line}: the tag {node.tag} is not allowed")
        if isinstance(node, yaml.MappingNode):
            found: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
                if not isinstance(key, (str, int, bool)):
                    raise ValueError(f"{self.name}:{key_node.start_mark.line + 1}: expected a name before the colon")
                if key in found:
                    both = f"lines {self._lines[(*path, key)]} and {key_node.start_mark.line + 1}"
                    raise ValueError(f"{self.name}:{key_node.start_mark.line + 1}: {key!r} is given twice ({both})")
                self._lines[(*path, key)] = key_node.start_mark.line + 1
                found[key] = self._walk(value_node, (*path, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._walk(item, (*path, i)) for i, item in enumerate(node.value)]
        return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise yaml.MarkedYAMLError(problem=f"{text[:40]!r} is no number", problem_mark=node.start_mark) from None
    return {"bool": text == "true", "null": None}.get(kind, text)


def read_space(source: str | Path | Mapping[str, Any]) -> DeclaredSpace:
    """Return the space that a YAML file, a YAML text or a mapping declares.

    Parameters
    ----------
    source : path, str or mapping
        A text of more than one line is YAML, one of a single line the path of a file.

    Raises
    ------
    ValueError
        In one line, beginning with file and line where there are such, that names what is wrong and what is allowed.
    """
    if isinstance(source, Mapping):
        return _space(source)
    if isinstance(source, str) and len(source.splitlines()) > 1:
        tree = Tree(source, "space")
    else:
        try:
            tree = Tree(Path(source).read_text(encoding="utf-8-sig"), Path(source).name)
        except FileNotFoundError:
            raise ValueError(f"no file {str(source)!r}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source}: {error}") from None
    try:
        return _space(tree.value)
    except SpaceError as error:
        raise ValueError(f"{tree.at(error.where)}: {error}") from None


def _space(given: Any) -> DeclaredSpace:
    _mapping("space", given, _KEYS)
    for key in ("space", "choices"):
        if key not in given:
            raise SpaceError(f"{key!r} is missing; keys are {', '.join(_KEYS)}")
    for key in ("choices", "constants", "costs"):
        if not isinstance(given.get(key) or {}, Mapping):
            raise SpaceError(f"{key}: expected a mapping of names, got {given[key]!r}", key)
    rules = given.get("rules") or []
    if not isinstance(rules, (list, tuple)):
        raise SpaceError(f"rules: expected a list of formulas, got {rules!r}", "rules")
    choices = [_choice(name, spec) for name, spec in (given["choices"] or {}).items()]
    others = {"network": given["network"]} if "network" in given else {}
    return DeclaredSpace(given["space"], choices, constants=given.get("constants"), rules=rules, costs=given.get("costs"), **others)


def _mapping(what: str, given: Any, allowed: Sequence[str], *where: Any) -> None:
    if not isinstance(given, Mapping):
        raise SpaceError(f"{what}: expected a mapping with the keys {', '.join(allowed)}, got {given!r}", *where)
    for key in given:
        if key not in allowed:
            raise SpaceError(f"{what}: unknown {key!r}; allowed are {', '.join(allowed)}{meant(key, allowed)}", *where, key)


def _choice(name: Any, given: Any) -> Choice:
    where = ("choices", name)
    spec = {"values": given} if isinstance(given, list) else given
    _mapping(f"{name!r}", spec, _CHOICE_KEYS, *where)
    if ("values" in spec) == ("range" in spec):
        raise SpaceError(f"{name!r}: expected either values or range", *where)
    for key in ("log", "steps"):
        if key in spec and "range" not in spec:
            raise SpaceError(f"{name!r}: {key} goes with range, not with values", *where, key)
    if "bounds" in spec and "range" in spec:
        raise SpaceError(f"{name!r}: bounds goes with values; those of a range are its ends", *where, "bounds")
    values: Any = spec.get("values")
    bounds: Any = spec.get("bounds")
    if "range" in spec:
        values = _grid(name, spec)
        bounds = spec["range"]
    if not isinstance(values, (list, tuple)):
        raise SpaceError(f"{name!r}: expected a list of values, got {values!r}", *where)
    for i, value in enumerate(values):
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?", value):
            plain = value.replace("_", "").lstrip("0") or "0"
            raise SpaceError(f"{name!r}: {value!r} looks like a number; write {plain}", *where, "values", i)
    keys = ("per", "when", "before", "order", "text")
    for key in keys:
        if key in spec and key != "before" and not isinstance(spec[key], str) and not (key == "when" and is_number(spec[key])):
            raise SpaceError(f"{name!r}: {key}: expected text, got {spec[key]!r}", *where, key)
    named: dict[str, Any] = {key: spec[key] for key in keys if key in spec}
    try:
        return Choice(name, values, numbers=spec.get("means"), bounds=bounds, **named)
    except ValueError as error:
        raise SpaceError(str(error), *where) from None


def _grid(name: str, spec: Mapping[str, Any]) -> list[int | float]:
    """Return the values of a range, those between its ends rounded to six digits."""
    where, ends, steps = ("choices", name, "range"), spec["range"], spec.get("steps")
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(is_number, ends)) or not ends[0] < ends[1]:
        raise SpaceError(f"{name!r}: range: expected [low, high], got {ends!r}", *where)
    low, high = ends
    whole, log = isinstance(low, int) and isinstance(high, int), spec.get("log", False)
    if not isinstance(log, bool) or (log and low <= 0):
        raise SpaceError(f"{name!r}: log: expected true or false, true for a range above 0, got {log!r} for {ends}", *where)
    if steps is None and whole and not log:
        steps = high - low + 1
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= MOST_VALUES:
        got = "nothing" if steps is None else f"{steps:,}" if isinstance(steps, int) else repr(steps)
        raise SpaceError(f"{name!r}: steps: expected 2 to {MOST_VALUES} values of the range, got {got}", *where)
    points = np.geomspace(low, high, steps) if log else np.linspace(low, high, steps)
    inner = [round(point) if whole else float(f"{point:.6g}") for point in points[1:-1].tolist()]
    return list(dict.fromkeys([low, *inner, high]))


def space_from_record(record: Mapping[str, Any]) -> Any:
    """Return the space that `to_record` wrote; one without a kind is HAT's.

    Raises
    ------
    ValueError
        If it is none.
    """
    if record.get("kind") == "declared":
        choices = [Choice(name, **{"numbers" if key == "means" else key: x for key, x in spec.items()}) for name, spec in record["choices"]]
        named = {key: dict(record[key]) for key in ("constants", "costs")}
        return DeclaredSpace(record["space"], choices, network=record["network"], rules=record["rules"], **named)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return SearchSpace(**values)
