"""Trained networks and their scores out of CSV, JSONL and YAML files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import read_row
from llmpp_core.pipeline.problems import Problems, named
from llmpp_core.space.architecture import HAT_NAMES
from llmpp_core.space.grammar import Tree
from llmpp_core.space.search_space import SearchSpace


@dataclass
class Trained:
    """Different networks, what training gave, and where that was read."""

    networks: list[Any] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  #: As in the file; of repeats, their mean.
    where: list[str] = field(default_factory=list)  #: File and line of each.
    columns: dict[str, list[float | None]] = field(default_factory=dict)  #: Measured costs, by column.
    head: list[str] = field(default_factory=list)  #: Names of all columns.
    ignored: list[str] = field(default_factory=list)  #: Those that were not used.
    notes: list[str] = field(default_factory=list)  #: What the user should know.
    noise: float | None = None  #: Standard deviation of repeats, if there are any.

    @property
    def decimals(self) -> int:
        """The fewest digits after the point at which all different scores differ, and one more; 1 to 6."""
        different = len(set(self.scores))
        fewest = next((digits for digits in range(6) if len({f"{score:.{digits}f}" for score in self.scores}) == different), 5)
        return fewest + 1

    def sort(self, key: Callable[[Any], Any]) -> None:
        """Put the networks in the order of a key."""
        order = sorted(range(len(self.networks)), key=lambda i: key(self.networks[i]))
        for values in (self.networks, self.scores, self.where, *self.columns.values()):
            values[:] = [values[i] for i in order]


def read_trained(
    paths: Sequence[Path],
    space: Any,
    score: str,
    *,
    columns: Mapping[str, str] | None = None,
    costs: Sequence[str] = (),
    repeats: str = "error",
    inactive: str = "error",
    longer_lists: str = "error",
) -> Trained:
    """Read trained networks.

    Parameters
    ----------
    paths : sequence of path
        CSV files with a line of names, JSONL files, or YAML lists of mappings.
    space : Space
    score : str
        Name of the column with the scores.
    columns : mapping of str to str, optional
        The column of a choice where it has another name.
    costs : sequence of str
        Columns with measured costs, which may be empty in places.
    repeats : {"error", "mean"}
        What to do with a network that is listed again with another score.
    inactive, longer_lists : str
        As of `llmpp_core.space.reading.read_network`.

    Raises
    ------
    ValueError
        All that is wrong, one line each, naming file and line.
    """
    problems, found = Problems(), Trained()
    groups: dict[Any, list[tuple[str, float, Mapping[str, Any]]]] = {}
    seen: dict[str, None] = {}
    for path in paths:
        with problems.collect():
            for where, row in _rows(Path(path)):
                _check_columns(where, row, space, [score, *costs], columns or {})
                seen.update(dict.fromkeys(row))
                with problems.collect(), named(where):
                    cells = {name: row[column] for column in row if (name := _choice_of(column, space, columns or {}))}
                    if isinstance(space, SearchSpace):
                        network = space.read({name: _hat_cell(name, value) for name, value in cells.items()})
                        space.validate(network)
                    else:
                        network = space.read(cells, inactive=inactive, longer_lists=longer_lists)
                    value = _number(row.get(score), f"score {score!r}")
                    groups.setdefault(network, []).append((where, value, row))
    found.head = list(seen)
    found.ignored = [column for column in seen if column not in (score, *costs) and not _choice_of(column, space, columns or {})]
    squares = []
    for network, group in groups.items():
        values, (first, *again) = [value for _, value, _ in group], [where for where, _, _ in group]
        if again and len(set(values)) == 1:
            found.notes.append(f"{again[0]}: the network of {_near(first, again[0])} again, with the same score; counted once")
        elif again and repeats != "mean":
            shown = ", ".join(f"{value:g}" for value in dict.fromkeys(values))
            problems.add(
                f"{again[0]}: the network of {_near(first, again[0])}, with another score ({shown}); keep one or set repeats: mean"
            )
        elif again:
            squares.append((np.var(values) * len(values), len(values) - 1))
        found.networks.append(network)
        found.scores.append(float(np.mean(values)))
        found.where.append(first)
        for name in costs:
            with problems.collect(), named(first):
                given = [row[name] for _, _, row in group if row.get(name) not in (None, "", "-")]
                known = [_number(value, f"cost {name!r}") for value in given]
                found.columns.setdefault(name, []).append(float(np.mean(known)) if known else None)
    file = ", ".join(path.name for path in map(Path, paths))
    if len(groups) < 3 and not problems.lines:
        problems.add(f"{file}: {len(groups)} networks, at least 3 different ones are needed")
    elif len(set(found.scores)) == 1 and not problems.lines:
        problems.add(f"{file}: all {len(groups)} scores are {found.scores[0]:g}: nothing can be learned from them")
    problems.check()
    # Pooled, so that who was trained more often counts for more.
    found.noise = math.sqrt(sum(part for part, _ in squares) / sum(n for _, n in squares)) if squares else None
    return found


def _near(where: str, other: str) -> str:
    """Return a place as seen from another: by its line in the same file."""
    return f"line {where.rpartition(':')[2]}" if where.rpartition(":")[0] == other.rpartition(":")[0] else where


def names_of(space: Any) -> list[str]:
    """Return what the choices of a space are called in files."""
    return list(HAT_NAMES) if isinstance(space, SearchSpace) else [choice.name for choice in space.choices]


def _choice_of(column: str, space: Any, columns: Mapping[str, str]) -> str | None:
    """Return the choice that a column tells of, with the number of the layer if it has one; None for another column."""
    names = {columns.get(name, name): name for name in names_of(space)}
    if column in names:
        return names[column]
    numbered = re.fullmatch(r"(.+)(_\d{1,4})", column)
    return names[numbered[1]] + numbered[2] if numbered and numbered[1] in names else None


def _check_columns(where: str, row: Mapping[str, Any], space: Any, needed: Sequence[str], columns: Mapping[str, str]) -> None:
    """Raise ValueError if a column is missing: the first needed, which is the score, a cost, or a choice that every network makes."""
    file, depths = where.rpartition(":")[0], {choice.per for choice in space.choices}
    rare = {choice.name for choice in space.choices if choice.when is not None or choice.name in depths}
    names = [needed[0], *(column for name, column in columns.items() if name not in rare)]
    if file.lower().endswith(".csv"):
        # Elsewhere a row may leave out what would be an empty cell here.
        where, names = f"{file}:1", [*needed, *columns.values()]
    there = f"columns are {', '.join(row)}"
    for name in names:
        layered = name not in needed and any(column.startswith(f"{name}_") for column in row)
        if name not in row and not layered:
            raise ValueError(f"{where}: no column {name!r}; {there}")
    told = [_choice_of(column, space, columns) or "" for column in row]
    found = {re.sub(r"_\d+$", "", name) for name in told} | set(told)
    for choice in [] if isinstance(space, SearchSpace) else space.choices:
        if choice.name not in found and choice.name not in rare:
            hint = f"write columns: {{{choice.name}: ...}}"
            raise ValueError(f"{where}: no column {choice.name!r} (choice of {space.name}); {there}; {hint}")


def _hat_cell(name: str, value: Any) -> Any:
    parts = re.findall(r"[^\s;,\[\]]+", value) if isinstance(value, str) else []
    # A spreadsheet may write 3.0.
    numbers = [int(part.removesuffix(".0")) for part in parts if re.fullmatch(r"-?\d+(\.0)?", part)]
    if not numbers or len(numbers) < len(parts):
        return value
    return numbers if "-all-" in name or len(numbers) != 1 else numbers[0]


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where a row is, and the row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path.name}: {'no such file' if not path.exists() else error.strerror or error}") from None
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path.name, text)
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            row = read_row(line) if line.strip() else {}
            if row is None:
                raise ValueError(f"{path.name}:{number}: not a JSON object")
            if row:
                yield f"{path.name}:{number}", row
    elif kind in (".yml", ".yaml"):
        tree = Tree(text, path.name)
        if not isinstance(tree.value, list) or not all(isinstance(row, dict) for row in tree.value):
            raise ValueError(f"{path.name}:1: expected a list of mappings, one per network")
        yield from ((tree.at((i,)), {str(name): value for name, value in row.items()}) for i, row in enumerate(tree.value))
    else:
        raise ValueError(f"{path.name}: expected a file ending in .csv, .jsonl, .yml or .yaml")


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader, head, line = csv.reader(io.StringIO(text), strict=True), list[str](), 1
    try:
        for cells in reader:
            where, line = f"{name}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if head:
                if len(cells) != len(head):
                    raise ValueError(f"{where}: {len(cells)} cells, but {len(head)} columns; quote cells that hold commas")
                yield where, dict(zip(head, (cell.strip() for cell in cells), strict=True))
                continue
            head = [cell.strip() for cell in cells]
            if len(head) == 1 and re.search("[;\t]", head[0]):
                raise ValueError(f"{where}: the columns are not separated by commas, as in {head[0][:40]!r}; write commas")
            if twice := [column for column in head if column and head.count(column) > 1]:
                raise ValueError(f"{where}: the column {twice[0]!r} is there twice")
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: {error}") from None
    if not head:
        raise ValueError(f"{name}:1: the file is empty")


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return number
