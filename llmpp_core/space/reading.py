"""Descriptions of networks of a declared space, in whatever form they come, into networks that are equal where they mean the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpp_core.space.choice import Choice, meant, show
from llmpp_core.space.network import Network

if TYPE_CHECKING:
    from llmpp_core.space.declared import DeclaredSpace


def read_network(space: DeclaredSpace, source: Any, inactive: str = "error", longer_lists: str = "error") -> Network:
    """Return the network that a description means.

    Parameters
    ----------
    space : DeclaredSpace
    source : mapping, str or iterable of str
        Choices and their values, or lines ``name: value``. What is made per layer is a list, a text such as ``1024 2048``, one value
        for all layers, or several entries ``name_0``, ``name_1``, ... (or from 1). Empty is absent. A depth may be left out where
        the lists tell it.
    inactive : {"error", "drop"}
        What to do with a value of a choice that the network does not make.
    longer_lists : {"error", "cut"}
        What to do with values of layers that it does not have.

    Raises
    ------
    ValueError
        Naming the choice and what is allowed.
    """
    for name, given, other in (("inactive", inactive, "drop"), ("longer_lists", longer_lists, "cut")):
        if given not in ("error", other):
            raise ValueError(f"{name}: expected error or {other}, got {given!r}")
    if not isinstance(source, Mapping):
        source = {name: _parsed(text) for name, text in named_values(source).items()}
    values_of = _by_choice(space, source)
    layers = _depths_of_lists(space, values_of)
    values: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for name in space.order:
        choice = space.by_name[name]
        value, count = values_of.get(name), 1
        if name in layers and value is None:
            value = layers[name]
        if choice.per:
            count = int(numbers.get(choice.per, 0))
            value = _as_list(choice, value, count, longer_lists)
        made = np.broadcast_to(space.holds(name, numbers) if count else np.False_, max(count, 1))
        if not made.any():
            empty = value is None or (choice.per and all(v is None for v in value))
            if not empty and inactive == "error":
                why = f"{choice.per} is absent" if choice.per and not count else f"{choice.when} does not hold"
                raise ValueError(f"{name} is {show(value)[:80]} but {why}, so that it has no meaning; leave it out, or set inactive: drop")
            continue
        if value is None:
            raise ValueError(f"{name} is missing; allowed are {choice.allowed()}")
        listed: list[Any] = []
        for layer, (v, makes) in enumerate(zip(value if choice.per else [value], made, strict=True)):
            where = f"{name}[{layer}]" if choice.per else name
            if not makes:
                if v is not None and inactive == "error":
                    raise ValueError(f"{where} is {show(v)} but {choice.when} does not hold there, so that it has no meaning")
                listed.append(None)
                continue
            if v is None:
                raise ValueError(f"{where} is missing; allowed are {choice.allowed()}")
            try:
                listed.append(choice.read(v))
            except ValueError as error:
                raise ValueError(f"{where} {error}") from None
        values[name] = tuple(listed) if choice.per else listed[0]
        seen = [float("nan") if v is None else choice.number(v) for v in listed]
        numbers[name] = seen if choice.per else seen[0]
        # A trained network may lie between the proposed depths, but not between two layers.
        if name in space.depths and numbers[name] % 1:
            raise ValueError(f"{name} is {show(listed[0])}; allowed are {choice.allowed()}, whole ones")
    network = Network({choice.name: values[choice.name] for choice in space.choices if choice.name in values})
    broken = space.broken(network)
    if broken:
        raise ValueError(f'the network breaks the rule "{broken}"')
    return network


def named_values(source: Any) -> dict[str, str]:
    """Return the values of lines ``name: value`` by name; raises ValueError naming the line that is none, or a name given twice."""
    if isinstance(source, (bytes, set, frozenset)) or not isinstance(source, Iterable):
        raise ValueError(f"expected a mapping of choices, or lines 'name: value'; got {type(source).__name__}")
    found: dict[str, str] = {}
    for line in source.splitlines() if isinstance(source, str) else source:
        if not isinstance(line, str):
            raise ValueError(f"expected lines 'name: value', got {type(line).__name__}")
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"expected a line 'name: value', got {line[:80]!r}")
        if name.strip() in found:
            raise ValueError(f"{name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _by_choice(space: DeclaredSpace, given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return values by choice, entries of layers put together; empty ones left out."""
    names = {choice.key: choice for choice in space.choices}
    found: dict[str, Any] = {}
    layered: dict[str, dict[int, Any]] = {}
    for key, value in given.items():
        value = value.item() if isinstance(value, np.generic) else value
        value = value.tolist() if isinstance(value, np.ndarray) else value
        plain = str(key).strip().replace("-", "_")
        of_layer = re.fullmatch(r"(.+?)_(\d{1,4})", plain)
        dash = not (plain in names and "-" in names[plain].values)
        empty = value is None or value != value or (isinstance(value, str) and value.strip() in ("", "-"[:dash]))
        if plain in names:
            if names[plain].name in found and not empty:
                raise ValueError(f"{names[plain].name} is given twice")
            if not empty:
                found[names[plain].name] = value
        elif of_layer and of_layer[1] in names and names[of_layer[1]].per:
            entries = layered.setdefault(names[of_layer[1]].name, {})
            entries[int(of_layer[2])] = None if empty else value
        else:
            raise ValueError(f"unknown choice {str(key)[:80]!r}; choices are {', '.join(space.by_name)}{meant(key, space.by_name)}")
    for name, entries in layered.items():
        first, last = min(entries), max((i for i, value in entries.items() if value is not None), default=-1)
        if last < 0:
            continue
        if name in found or first > 1 or sorted(entries) != list(range(first, first + len(entries))):
            also = f"{name} and " if name in found else ""
            raise ValueError(f"{name}: layers are counted from 0 or 1 without gaps; got {also}{', '.join(f'{name}_{i}' for i in entries)}")
        found[name] = [entries[i] for i in range(first, last + 1)]
    return found


def _depths_of_lists(space: DeclaredSpace, given: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for depth in space.depths:
        if depth not in given:
            lists = {c.name: _split(c, given[c.name]) for c in space.choices if c.per == depth and c.name in given}
            lengths = {name: len(value) for name, value in lists.items() if isinstance(value, list)}
            # Of what is not made in every layer, the last entries may be left out.
            if any(n != max(lengths.values()) for name, n in lengths.items() if space.by_name[name].when is None):
                told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise ValueError(f"{depth} is missing, and lists differ in length: {told}")
            if lengths:
                found[depth] = max(lengths.values())
    return found


def _split(choice: Choice, value: Any) -> Any:
    """Return the list that a text holds, or the value as it is."""
    if isinstance(value, str) and value.strip() not in choice.values:
        parsed = _parsed(value)
        if isinstance(parsed, list):
            return parsed
        parts = re.split(r"[\s;,]+", value.strip())
        return [None if part == "-" else part for part in parts] if len(parts) > 1 else value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _as_list(choice: Choice, value: Any, count: int, longer_lists: str) -> list[Any]:
    value = _split(choice, value)
    if not isinstance(value, list):
        return [value] * max(count, 1)
    if len(value) > count and longer_lists == "cut":
        return value[:count]
    if choice.when and 0 < len(value) < count:
        # Of entries of layers the last may be empty, since they are not made there.
        value = value + [None] * (count - len(value))
    if len(value) != count and count:
        hint = "; set longer_lists: cut" if len(value) > count else ""
        raise ValueError(f"{choice.name} has {len(value)} entries, {choice.per} is {count}{hint}")
    return value


class NetworkColumns:
    """The numbers of listed networks by choice, as `llmpp_core.space.genes.ArchitectureTable` has those of rows.

    Networks may have numbers that are not proposed, which rows cannot.
    """

    def __init__(self, space: DeclaredSpace, networks: Sequence[Network]):
        self.space, self.networks = space, networks

    def __len__(self) -> int:
        return len(self.networks)

    def values(self, name: str) -> np.ndarray:
        """Return numbers, shape (n,), or (n, layers) where the choice is made per layer; 0 where it is not made."""
        choice = self.space.by_name[name]
        found = self._filled(choice, 0.0, choice.number)
        return found if choice.per else found[:, 0]

    def positions(self, name: str) -> np.ndarray:
        """Return positions among the values, -1 where the choice is not made, shape (n, layers), or (n, 1) if made once."""
        values = self.space.by_name[name].values
        # What is between the values is at none of them, and made.
        return self._filled(self.space.by_name[name], -1.0, lambda v: values.index(v) if v in values else len(values))

    def _filled(self, choice: Choice, absent: float, number: Any) -> np.ndarray:
        width = int(self.space.layers[choice.per].max()) if choice.per else 1
        found = np.full((len(self.networks), width), absent)
        for row, network in zip(found, self.networks, strict=True):
            value = network.get(choice.name)
            if value is not None:
                listed = value if choice.per else (value,)
                row[: len(listed)] = [absent if v is None else number(v) for v in listed]
        return found
