"""What a run is to do: the fields of run.yml, their defaults, and what is wrong with them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpp_core.pipeline.problems import Problems
from llmpp_core.space.choice import is_number, meant
from llmpp_core.space.grammar import Tree

REQUIRED = object()
Check = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
        raise ValueError(f"expected one line of text, got {value!r}")
    return value


def _maybe_text(value: Any) -> str:
    return "" if value == "" else _text(value)


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value] if isinstance(value, list) and value else [_text(value)]


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}, got {value!r}")
        return value

    return check


def _number(low: float = -math.inf, high: float = math.inf, whole: bool = False) -> Check:
    def check(value: Any) -> Any:
        if not is_number(value) or not low <= value <= high or (whole and value != int(value)):
            span = "" if low == -math.inf else f" from {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
            raise ValueError(f"expected {'a whole number' if whole else 'a number'}{span}, got {value!r}")
        return int(value) if whole else float(value)

    return check


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


def _names(value: Any) -> dict[str, str]:
    return {_text(name): _text(column) for name, column in _mapping(value).items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected names and what they are, got {value!r}")
    return value


def _pairs(value: Any) -> list[list[str]]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"expected pairs of texts, [[input, output], ...], got {value!r}")
    return [[_text(part) for part in pair] for pair in value]


def _location(value: Any) -> str:
    if not re.fullmatch(r"[\w.]+:[A-Za-z_]\w*", _text(value)):
        raise ValueError(f"expected MODULE:NAME, got {value!r}")
    return str(value)


def _costs(value: Any) -> dict[str, dict[str, str]]:
    found = {}
    for name, cost in _mapping(value).items():
        kind = set(_mapping(cost)) & {"column", "python"}
        if len(kind) != 1 or not set(cost) <= {"column", "python", "unit"}:
            raise ValueError(f"{name}: expected {{column: NAME, unit: TEXT}} or {{python: MODULE:FUNCTION, unit: TEXT}}, got {cost!r}")
        found[_text(name)] = {key: _location(text) if key == "python" else _text(text) for key, text in cost.items()}
    return found


def _limits(value: Any) -> dict[str, list[Any]]:
    """Return number and unit of each limit; a unit of None where none is given."""
    found = {}
    for name, limit in _mapping(value).items():
        text = re.fullmatch(r"([-+.\deE]+)\s*(\S.*)", limit.strip()) if isinstance(limit, str) else None
        try:
            number, unit = (float(text[1]), text[2]) if text else (float(limit), None)
        except (TypeError, ValueError):
            number, unit = math.nan, None
        if not math.isfinite(number) or isinstance(limit, bool):
            raise ValueError(f"limit {name!r}: expected a number, or one with a unit such as '150 ms', got {limit!r}")
        found[_text(name)] = [number, unit]
    return found


def _price(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not {"prompt", "answer", "date"} <= set(value) <= {"prompt", "answer", "date", "currency"}:
        raise ValueError(f"expected {{prompt: P, answer: A, date: 'YYYY-MM-DD'}}, prices of a million tokens, got {value!r}")
    return dict(value)


_POSITIVE, _WHOLE = _number(0), _number(1, whole=True)
#: Every field, what it is if left out, and what reads it. Names with a point are below the name before it.
FIELDS: dict[str, tuple[Any, Check]] = {
    "space": (REQUIRED, lambda value: value if not isinstance(value, str) else _text(value)),
    "trained": (REQUIRED, _texts),
    "columns": ({}, _names),
    "repeats": ("error", _one_of("error", "mean")),
    "inactive": ("error", _one_of("error", "drop")),
    "longer_lists": ("error", _one_of("error", "cut")),
    "score.column": (REQUIRED, _text),
    "score.better": (REQUIRED, _one_of("higher", "lower")),
    "score.low": (None, _optional(_number())),
    "score.high": (None, _optional(_number())),
    "score.name": (None, _optional(_text)),
    "score.text": ("", _maybe_text),
    "score.decimals": (None, _optional(_number(0, 6, whole=True))),
    "score.noise": (None, _optional(_number(0))),
    "task.description": (None, _optional(_text)),
    "task.examples": ([], _pairs),
    "costs": ({}, _costs),
    "told": (None, _optional(_text)),
    "limits": ({}, _limits),
    "model.recording": (None, _optional(_text)),
    "model.name": (None, _optional(_text)),
    "model.base_url": (None, _optional(_text)),
    "model.price": (None, _optional(_price)),
    "model.budget": (0.0, _POSITIVE),
    "model.token_cap": (None, _optional(_WHOLE)),
    "model.key_variable": (None, _optional(_text)),
    "model.form": ("json", _one_of("json", "batched", "single")),
    "model.batch": (10, _WHOLE),
    "model.samples": (1, _WHOLE),
    "model.nameless": (False, _flag),
    "labels": (400, _number(2, whole=True)),
    "predictor": ("auto", _one_of("auto", "model", "regression", "average")),
    "search.iterations": (30, _WHOLE),
    "search.population": (125, _number(4, whole=True)),
    "search.seed": (0, _number(0, whole=True)),
    "search.costly": (None, _optional(_location)),
    "search.switch": (15, _number(0, whole=True)),
    "propose.n": (5, _WHOLE),
    "propose.distance": (0.15, _number(0, 1)),
    "folder": (None, _optional(_text)),
}
_GROUPS = {name.partition(".")[0] for name in FIELDS if "." in name}
#: Fields that may differ when a run goes on, since what is done does not depend on them.
FREE = ("model.price", "model.budget", "model.token_cap", "model.key_variable", "model.base_url", "folder", "trained")


@dataclass(frozen=True)
class Run:
    """The fields of a run, each of `FIELDS` with what it is; `file` names them in errors, paths begin at `base`."""

    fields: Mapping[str, Any]
    file: str
    base: Path
    tree: Tree | None

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def at(self, name: str) -> str:
        """Return where a field is, for errors: file, line and name."""
        return self.tree.at(name.split(".")) if self.tree else self.file

    def path(self, text: str) -> Path:
        """Return a path of the file, which begins where the file is."""
        return self.base / text

    @property
    def asks(self) -> bool:
        """Whether there is a language model, or a recording of one."""
        return bool(self["model.name"] or self["model.recording"])

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.path(self["folder"] or f"{Path(self.file).stem}-out")


def read_run(run: Mapping[str, Any] | str | Path) -> Run:
    """Read the fields of a run from a YAML file, or a mapping of the same form whose paths begin in the working folder.

    Raises
    ------
    ValueError
        All that is wrong, one line each, naming the line of the file.
    """
    given, tree, file, base = run, None, "run", Path()
    if not isinstance(run, Mapping):
        path = Path(run)
        try:
            tree = Tree(path.read_text(encoding="utf-8-sig"), path.name)
        except OSError as error:
            raise ValueError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text") from None
        given, file, base = tree.value, path.name, path.parent
    if not isinstance(given, Mapping):
        raise ValueError(f"{file}:1: expected fields such as space, trained and score, got {given!r}")
    problems, flat = Problems(), dict[str, Any]()
    found = Run({}, file, base, tree)
    for name, value in given.items():
        if name == "model" and value in ("none", None):
            continue
        if name not in _GROUPS:
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            problems.add(f"{found.at(name)}: {name}: expected {_below(name)} below it, got {value!r}")
            flat |= {key: None for key, (default, _) in FIELDS.items() if key.startswith(f"{name}.") and default is REQUIRED}
    for name in flat:
        if name not in FIELDS:
            group = name.partition(".")[0]
            known = [field.partition(".")[2] for field in FIELDS if field.startswith(f"{group}.")] if group in _GROUPS else _top()
            last = name.rpartition(".")[2] if group in _GROUPS else name
            near = meant(last, known) or f"; fields are {', '.join(known)}"
            problems.add(f"{found.at(name)}: unknown field {name!r}{near}")
    fields = {}
    for name, (default, check) in FIELDS.items():
        if name in flat and not (default is REQUIRED and flat[name] is None):
            with problems.collect(), problems.named(f"{found.at(name)}: {name}"):
                fields[name] = check(flat[name])
        elif default is REQUIRED and name not in flat:
            problems.add(f"{found.at(name)}: {name} is missing")
        else:
            fields[name] = default
    if len(fields) == len(FIELDS):
        found = Run(fields, file, base, tree)
        _check_together(found, problems)
    problems.check()
    return found


def _top() -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in FIELDS))


def _below(group: str) -> str:
    return ", ".join(name.partition(".")[2] for name in FIELDS if name.startswith(f"{group}."))


def _check_together(run: Run, problems: Problems) -> None:
    """Add what is wrong with fields that depend on each other."""
    low, high = run["score.low"], run["score.high"]
    if low is not None and high is not None and low >= high:
        problems.add(f"{run.at('score.low')}: score.low is {low:g}, not below score.high, {high:g}")
    if run["model.name"] and run["model.recording"]:
        problems.add(f"{run.at('model.recording')}: model: give a name or a recording, not both")
    if run["model.name"] and not run["model.base_url"]:
        problems.add(f"{run.at('model.name')}: model.base_url is missing: where does {run['model.name']} answer?")
    if any(run[name] != FIELDS[name][0] for name in ("model.base_url", "model.price", "model.samples")) and not run.asks:
        problems.add(f"{run.at('model')}: model.name is missing")
    if run.asks and not run["task.description"]:
        problems.add(f"{run.at('task')}: a model needs task.description, which completes 'The networks are trained for ...'")
    if run.asks and (low is None or high is None):
        problems.add(f"{run.at('score')}: a model needs score.low and score.high, the range of possible scores")
    if run["predictor"] in ("model", "average") and not run.asks:
        problems.add(f"{run.at('predictor')}: predictor {run['predictor']!r} needs a model")
    if run["search.costly"] and run["search.switch"] >= run["search.iterations"]:
        problems.add(f"{run.at('search.switch')}: search.switch: expected less than iterations, {run['search.iterations']}")


def listed(values: Iterable[str]) -> str:
    """Return names in words, or that there are none."""
    return ", ".join(values) or "none"
