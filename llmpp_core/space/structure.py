"""Which choices of a declared space are made: depths and conditions as truth tables, and what formulas may name where."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmpp_core.space.choice import Choice, is_number, meant
from llmpp_core.space.formulas import Formula
from llmpp_core.space.genes import MOST_LISTED, Genes

# Largest truth tables: of a condition over its parents, and of all genes over all gates.
_MOST_COMBINATIONS = 4096
_MOST_LAYERS = 1000


class SpaceError(ValueError):
    """A space that cannot be; `where` leads to what is wrong, such as ("costs", "FLOPs")."""

    def __init__(self, message: str, *where: Any):
        super().__init__(message)
        self.where = where


class Structure:
    """The choices of a space and how they depend on each other; `llmpp_core.space.declared.DeclaredSpace` adds all else.

    Attributes
    ----------
    genes : tuple of (str, int or None)
        Choice and layer of each gene, layer None where a choice is made once.
    depths, gates : tuple of str
        Choices that count layers; and those with which others come and go, parents first.
    """

    def __init__(self, name: str, choices: Sequence[Choice], constants: Mapping[str, float]):
        self.name, self.choices, self.constants = name, tuple(choices), dict(constants)
        if not self.choices:
            raise SpaceError("choices: expected at least one", "choices")
        self.by_name = {choice.name: choice for choice in self.choices}
        self._sources = self._named()
        depths = {self._depth(choice) for choice in self.choices if choice.per}
        self.depths = tuple(c.name for c in self.choices if c.name in depths)
        # How many layers each position of a depth stands for; the last, for -1, none.
        self.layers = {d: np.array([*(self.by_name[d].numbers or ()), 0]) for d in self.depths}
        self.genes: tuple[tuple[str, int | None], ...] = tuple(
            (c.name, layer) for c in self.choices for layer in ([None] if c.per is None else range(self.layers[c.per].max()))
        )
        self._conditions = conditions = {
            c.name: self.formula(repr(c.name), c.when, c.per, "choices", c.name) for c in self.choices if c.when is not None
        }
        for name, formula in conditions.items():
            for key in formula.names:
                if self._sources.get(key, ("", 0.0))[0] not in ("value", "constant"):
                    raise SpaceError(f"{name!r}: a condition names choices and constants, not {key!r}", "choices", name, "when")
        self._parents = {name: tuple(self._parent(key) for key in f.names if self._parent(key)) for name, f in conditions.items()}
        self.order = self._parents_first()
        gates = {*self.depths, *(parent for parents in self._parents.values() for parent in parents)}
        self.gates = tuple(name for name in self.order if name in gates)
        self._once = tuple(name for name in self.gates if self.by_name[name].per is None)
        self.stratum = next((name for name in (*self.depths, *self._once) if len(self.by_name[name].values) > 1), None)
        self._genes = Genes(self)  # type: ignore[arg-type]
        self._columns = self._genes.columns
        self._starts = np.array([self._columns[gate].start for gate in self.gates], dtype=int)
        self._tables = {name: self._truth_table(name, formula) for name, formula in conditions.items()}
        self._combined = self._combine()

    def active(self, rows: np.ndarray) -> np.ndarray:
        """Return which genes count, shape (n, genes)."""
        if self._combined is not None:
            return self._combined[tuple(rows[:, self._starts].T)]
        active = np.ones(rows.shape, dtype=bool)
        for name in self.order:
            choice, columns = self.by_name[name], self._columns[name]
            if choice.per:
                depth = self.layers[choice.per][self._made(choice.per, rows, active)]
                active[:, columns] = np.arange(columns.stop - columns.start) < depth
            if name in self._tables:
                active[:, columns] &= self._tables[name][tuple(self._made(parent, rows, active) for parent in self._parents[name])]
        return active

    def _made(self, name: str, rows: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Return the positions of a choice, -1 where it is not made, shape (n, 1) or (n, layers)."""
        columns = self._columns[name]
        return np.where(active[:, columns], rows[:, columns], -1)

    def formula(self, what: str, text: Any, depth: str | None, *where: Any) -> Formula:
        """Return a formula on what is known once, or in a layer; raises SpaceError, saying of what, for what it may not name there."""
        known: dict[str, Choice | None] = {}
        refused = {}
        for key, (kind, choice) in self._sources.items():
            per = choice.per if isinstance(choice, Choice) else None
            if kind == "constant" or (kind == "value" and per in (None, depth)):
                known[key] = choice if isinstance(choice, Choice) else None
            elif kind == "value" and depth is None:
                refused[key] = f"{key!r} differs by layer; write it under '{per}:', or {key}_first, {key}_last"
            elif kind == "value":
                refused[key] = f"{key!r} differs by layer of {per}, and this is about the layers of {depth}"
            elif kind == "before" and per == depth and isinstance(choice, Choice):
                known |= {key: choice} if choice.before is not None else {}
                refused |= {key: f"{key!r} needs 'before: <number>' of {choice.name}"} if choice.before is None else {}
            elif kind in ("first", "last") and depth is None and isinstance(choice, Choice):
                known[key] = choice
        if depth is not None:
            known["layer"] = None
        try:
            return Formula(text, known, refused)
        except ValueError as error:
            raise SpaceError(f"{what}: {error}", *where) from None

    def holds(self, name: str, numbers: Mapping[str, Any]) -> Any:
        """Return whether the condition of a choice holds, given the numbers of those before it: per layer lists, and nan if not made."""
        formula, parents = self._conditions.get(name), self._parents.get(name, ())
        if formula is None or any(parent not in numbers for parent in parents):
            return np.bool_(formula is None)
        names: dict[str, Any] = dict(self.constants)
        names |= {self.by_name[parent].key: np.array(numbers[parent], dtype=float) for parent in parents}
        made = np.all(np.broadcast_arrays(*(~np.isnan(names[self.by_name[parent].key]) for parent in parents)), axis=0)
        return (np.nan_to_num(formula(names)) != 0) & made

    def arrays(self, columns: Any, names: Sequence[str], depth: str | None) -> dict[str, Any]:
        """Return what the names of a formula stand for: shape (n,), or (n, layers) and (n, 1) in the formula of a depth."""
        found: dict[str, Any] = {}
        for key in names:
            if key == "layer":
                assert depth is not None
                found[key] = np.arange(1.0, self.layers[depth].max() + 1)
                continue
            kind, choice = self._sources[key]
            if not isinstance(choice, Choice):
                found[key] = float(choice)
                continue
            values = (columns.positions(choice.name) if choice.numbers is None else columns.values(choice.name)).astype(float)
            values = values if values.ndim == 2 else values[:, None]
            if kind == "before":
                values = np.hstack([np.full((len(values), 1), choice.before), values[:, :-1]])
            elif kind == "first":
                values = values[:, :1]
            elif kind == "last":
                assert choice.per is not None
                last = columns.values(choice.per).astype(int)[:, None] - 1
                values = np.where(last >= 0, np.take_along_axis(values, np.maximum(last, 0), axis=1), 0.0)
            found[key] = values if depth is not None else values[:, 0]
        return found

    def combinations(self) -> int:
        """Return the exact number of networks, rules aside."""
        total = 0
        plain = [c.name for c in self.choices if c.per is None and c.name not in self.gates]
        try:
            patterns = self._genes.patterns(self._once)
        except ValueError:
            names = f"{', '.join(self._once)}, on which others depend"
            raise SpaceError(f"choices: {names}, have more than {MOST_LISTED:,} combinations", "choices") from None
        active = self.active(patterns)
        for row, makes in zip(patterns, active, strict=True):
            count = math.prod(len(self.by_name[name].values) for name in plain if makes[self._columns[name].start])
            for depth in self.depths:
                layers = int(self.layers[depth][row[self._columns[depth].start]])
                if layers:
                    count *= self._of_a_layer(row, depth) ** layers
            total += count
        return total

    def _of_a_layer(self, row: np.ndarray, depth: str) -> int:
        rows, inner = row[None], [c.name for c in self.choices if c.per == depth]
        for gate in self.gates:
            if gate in inner:
                rows = self._genes.branched(rows, self._columns[gate].start)
        made = self.active(rows)
        plain = [(self._columns[name].start, len(self.by_name[name].values)) for name in inner if name not in self.gates]
        return sum(math.prod(count for start, count in plain if makes[start]) for makes in made)

    def _named(self) -> dict[str, tuple[str, Choice | float]]:
        """Return what formulas can name: kind and choice, or constant."""
        sources: dict[str, tuple[str, Choice | float]] = {}

        def add(key: str, kind: str, source: Choice | float, *where: Any) -> None:
            if key in sources:
                raise SpaceError(f"{where[-1]!r}: formulas already have a name {key!r}", *where)
            sources[key] = (kind, source)

        for choice in self.choices:
            add(choice.key, "value", choice, "choices", choice.name)
        for choice in self.choices:
            for kind in ("before", "first", "last"):
                if choice.per:
                    add(f"{choice.key}_{kind}", kind, choice, "choices", choice.name)
        for name, value in self.constants.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or keyword.iskeyword(name) or name == "layer":
                raise SpaceError(f"constant {name!r}: a name has letters, digits and _, first a letter", "constants", name)
            if not is_number(value):
                raise SpaceError(f"constant {name!r}: expected a finite number, got {value!r}", "constants", name)
            add(name, "constant", value, "constants", name)
        return sources

    def _depth(self, choice: Choice) -> str:
        depth, where = self.by_name.get(choice.per or ""), ("choices", choice.name, "per")
        if depth is None:
            raise SpaceError(f"choice {choice.name!r}: per {choice.per!r} is no choice{meant(choice.per, self.by_name)}", *where)
        if depth.per or depth.numbers is None or not all(isinstance(n, int) and 0 < n <= _MOST_LAYERS for n in depth.numbers):
            raise SpaceError(
                f"choice {choice.name!r}: per {depth.name!r} must count layers: integers from 1 to {_MOST_LAYERS}, chosen once", *where
            )
        if depth.bounds and depth.bounds[1] > max(depth.numbers):
            raise SpaceError(f"{depth.name!r}: bounds of what counts layers end with its largest value, {max(depth.numbers)}", *where)
        return depth.name

    def _parent(self, key: str) -> str:
        source = self._sources.get(key, ("", 0.0))[1]
        return source.name if isinstance(source, Choice) else ""

    def _parents_first(self) -> list[str]:
        order: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                circle = " -> ".join((*path[path.index(name) :], name))
                raise SpaceError(f"choice {name!r} depends on itself: {circle}", "choices", name)
            if name not in order:
                per = self.by_name[name].per
                for parent in (*((per,) if per else ()), *self._parents.get(name, ())):
                    visit(parent, (*path, name))
                order.append(name)

        for choice in self.choices:
            visit(choice.name, ())
        return order

    def _truth_table(self, name: str, formula: Formula) -> np.ndarray:
        """Return whether a condition holds for all positions of its parents, and False at the end of each, for one that is not made."""
        parents = [self.by_name[parent] for parent in self._parents[name]]
        counts, where = [len(parent.values) for parent in parents], ("choices", name, "when")
        if math.prod(counts) > _MOST_COMBINATIONS:
            raise SpaceError(f"{name!r}: its condition combines {math.prod(counts):,} values; at most {_MOST_COMBINATIONS:,}", *where)
        grid = np.indices(counts)
        names: dict[str, Any] = dict(self.constants)
        for parent, positions in zip(parents, grid, strict=True):
            names[parent.key] = positions * 1.0 if parent.numbers is None else np.array(parent.numbers, dtype=float)[positions]
        held = np.broadcast_to(np.nan_to_num(formula(names)) != 0, counts)
        if not held.any():
            raise SpaceError(f'{name!r}: "{formula.text}" never holds', *where)
        if held.all() and not any(parent.name in self._parents or parent.per for parent in parents):
            raise SpaceError(f'{name!r}: "{formula.text}" always holds: leave it out', *where)
        return np.pad(held, [(0, 1)] * len(counts))

    def _combine(self) -> np.ndarray | None:
        """Return which genes count by the positions of all gates, -1 being the last; None where that would be too large."""
        counts = [len(self.by_name[gate].values) + 1 for gate in self.gates]
        if not counts or math.prod(counts) > _MOST_COMBINATIONS or len(self._once) < len(self.gates):
            return None
        self._combined = None
        rows = np.zeros((math.prod(counts), len(self.genes)), dtype=np.int8)
        grid = np.indices(counts).reshape(len(counts), -1).T
        rows[:, self._starts] = np.where(grid == np.array(counts) - 1, -1, grid)
        return self.active(rows).reshape(*counts, len(self.genes))
