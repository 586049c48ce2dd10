"""Trained networks and their scores out of CSV, JSONL and YAML files."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.pipeline.problems import Problems

# What stands for no value in a cell.
_NOTHING = ("", "-", "null")


@dataclass
class Trained:
    """Different networks, what training gave, and where that was read."""

    networks: list[Any] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  #: As in the file; of repeats, their mean.
    where: list[str] = field(default_factory=list)  #: File and line of each.
    columns: dict[str, list[float | None]] = field(default_factory=dict)  #: Measured costs, by column.
    ignored: list[str] = field(default_factory=list)  #: Columns that were not used.
    notes: list[str] = field(default_factory=list)  #: What the user should know.
    noise: float | None = None  #: Standard deviation of repeats, if there are any.
    decimals: int = 2  #: The fewest at which all different scores differ, and one more.


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
    repeats, inactive, longer_lists : str
        "mean" takes the mean of what is listed twice, "drop" leaves out values of choices that are off, "cut" what lists have beyond the depth.

    Raises
    ------
    ValueError
        All that is wrong, one line each, naming file and line.
    """
    columns, problems, found = dict(columns or {}), Problems(), Trained()
    names, depths = [choice.name for choice in space.choices], {choice.per for choice in space.choices if choice.per}
    groups: dict[Any, list[tuple[str, float, Mapping[str, Any]]]] = {}
    written: list[str] = []
    used: set[str] = set()
    for path in paths:
        with problems.collect():
            for where, row, head in _rows(Path(path)):
                for name in dict.fromkeys([*columns.values(), score, *costs]):
                    if name not in head and not any(column.startswith(f"{name}_") for column in head):
                        raise ValueError(f"{head_of(where, path)}: no column {name!r}; columns are {', '.join(head)}")
                with problems.collect():
                    cells, taken = _cells(row, names, columns, head, where, depths)
                    used.update(taken, (score, *costs))
                    found.ignored = list(dict.fromkeys([*found.ignored, *head]))
                    with problems.named(where):
                        network = _read(space, cells, inactive, longer_lists)
                        value = _number(row.get(score), f"score {score!r}")
                    assert value is not None
                    groups.setdefault(network, []).append((where, value, row))
                    written.append(str(row[score]))
    problems.check()
    found.ignored = [name for name in found.ignored if name not in used]
    spread = []
    for network, group in groups.items():
        values = [value for _, value, _ in group]
        where = group[0][0]
        if len(group) > 1:
            if len(set(values)) == 1:
                found.notes.append(f"{group[1][0]}: the network of {_line(where)} again, with the same score; counted once")
                values = values[:1]
            elif repeats != "mean":
                shown = ", ".join(f"{value:g}" for value in dict.fromkeys(values))
                problems.add(f"{group[1][0]}: the network of {_line(where)}, with another score ({shown}); keep one or set repeats: mean")
            else:
                spread.append(np.var(values, ddof=1))
        found.networks.append(network)
        found.scores.append(float(np.mean(values)))
        found.where.append(where)
        for name in costs:
            with problems.collect(), problems.named(where):
                measured = [_number(row.get(name), f"cost {name!r}", empty=True) for _, _, row in group]
                known = [value for value in measured if value is not None]
                found.columns.setdefault(name, []).append(float(np.mean(known)) if known else None)
    file = ", ".join(str(path) for path in paths)
    if len(found.networks) < 3 and not problems.lines:
        problems.add(f"{file}: {len(found.networks)} networks, at least 3 different ones are needed")
    elif len(set(found.scores)) == 1:
        problems.add(f"{file}: all {len(found.scores)} scores are {found.scores[0]:g}: nothing can be learned from them")
    problems.check()
    found.noise = math.sqrt(np.mean(spread)) if spread else None
    found.decimals = _decimals(found.scores)
    return found


def head_of(where: str, path: Path) -> str:
    """Return where the names of columns are: the first line of a CSV file, else the row itself."""
    return f"{path.name}:1" if path.suffix.lower() == ".csv" else where


def _line(where: str) -> str:
    return f"line {where.rpartition(':')[2]}"


def _decimals(scores: Sequence[float]) -> int:
    different = len(set(scores))
    fewest = next((digits for digits in range(7) if len({f"{score:.{digits}f}" for score in scores}) == different), 6)
    return min(max(fewest + 1, 1), 6)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield where a row is, the row, and the names of all columns of its file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from None
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path.name, text)
    elif kind == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(f"{path.name}:{number}: not a JSON object")
                yield f"{path.name}:{number}", row, list(row)
    elif kind in (".yml", ".yaml"):
        from llmpp_core.pipeline.run_file import read_yaml

        value, lines = read_yaml(text, path.name)
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ValueError(f"{path.name}:1: expected a list of mappings, one per network")
        for i, row in enumerate(value):
            yield f"{path.name}:{lines.get((i,), 1)}", row, list(row)
    else:
        raise ValueError(f"{path}: expected a file ending in .csv, .jsonl, .yml or .yaml")


def _csv_rows(name: str, text: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    head: list[str] = []
    start = 1
    try:
        for cells in reader:
            where, start = f"{name}:{start}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                head = [cell.strip() for cell in cells]
                if len(head) == 1 and re.search("[;\t]", head[0]):
                    raise ValueError(f"{where}: the columns are not separated by commas, as in {head[0][:40]!r}; write commas")
                if twice := [column for column in head if head.count(column) > 1]:
                    raise ValueError(f"{where}: the column {twice[0]!r} is there twice")
                continue
            if len(cells) != len(head):
                raise ValueError(f"{where}: {len(cells)} cells, but {len(head)} columns; quote cells that hold commas")
            yield where, dict(zip(head, (cell.strip() for cell in cells), strict=True)), head
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: {error}") from None
    if not head:
        raise ValueError(f"{name}:1: the file is empty")


def _number(value: Any, what: str, empty: bool = False) -> float | None:
    if empty and (value is None or str(value).strip().lower() in _NOTHING):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return number


def _cells(
    row: Mapping[str, Any], names: Sequence[str], columns: Mapping[str, str], head: Sequence[str], where: str, depths: set[str]
) -> tuple[dict[str, Any], set[str]]:
    """Return what a row says of each choice, a list where it differs by layer, and the columns that this is in."""
    cells: dict[str, Any] = {}
    used: set[str] = set()
    for name in names:
        column = columns.get(name, name)
        numbered = {int(found[1]): key for key in head if (found := re.fullmatch(rf"{re.escape(column)}_(\d+)", key)) and key not in names}
        if column in row:
            used.add(column)
            cells[name] = _cell(row[column])
        if numbered:
            if column in row:
                raise ValueError(f"{where}: both {column} and {numbered[min(numbered)]} are there; give one or the other")
            values = [_cell(row.get(numbered[i])) for i in sorted(numbered)]
            used.update(numbered.values())
            expected = list(range(min(numbered), min(numbered) + len(numbered)))
            given = [value is not None for value in values]
            if sorted(numbered) != expected or min(numbered) > 1 or sorted(given, reverse=True) != given:
                raise ValueError(f"{where}: the columns {column}_0, {column}_1, ... have gaps")
            cells[name] = [value for value in values if value is not None]
    return {name: value for name, value in cells.items() if value is not None and value != []}, used


def _cell(value: Any) -> Any:
    """Return the value of a cell: a list where it holds several, None where it holds nothing."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _NOTHING:
        return None
    if text.startswith("[") and text.endswith("]"):
        return [part.strip().strip("\"'") for part in text[1:-1].split(",") if part.strip()]
    parts = [part for part in re.split(r"[;\s]+", text) if part]
    return parts if len(parts) > 1 and (";" in text or all(re.fullmatch(r"[-+.\deE]+", part) for part in parts)) else text


def _read(space: Any, cells: Mapping[str, Any], inactive: str, longer_lists: str) -> Any:
    raise NotImplementedError
