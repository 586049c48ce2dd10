"""What a run is to do: the fields of run.yml, their defaults, and what is wrong with them."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpp_core.pipeline.problems import Problems, named
from llmpp_core.space.choice import is_number, meant
from llmpp_core.space.grammar import Tree

REQUIRED = object()
#: Every field, what it is if left out, and its kind, see `_read`; names with a point are below the name before it.
FIELDS: dict[str, tuple[Any, str]] = {
    "space": (REQUIRED, "space"),
    "trained": (REQUIRED, "texts"),
    "columns": ({}, "names"),
    "repeats": ("error", "error|mean"),
    "inactive": ("error", "error|drop"),
    "longer_lists": ("error", "error|cut"),
    "score.column": (REQUIRED, "text"),
    "score.better": (REQUIRED, "higher|lower"),
    "score.low": (None, "number"),
    "score.high": (None, "number"),
    "score.name": (None, "text"),
    "score.text": (None, "text"),
    "score.decimals": (None, "whole number from 0 to 6"),
    "score.noise": (None, "number from 0"),
    "task.description": (None, "text"),
    "task.examples": ([], "pairs"),
    "costs": ({}, "costs"),
    "told": (None, "text"),
    "limits": ({}, "limits"),
    "model.recording": (None, "text"),
    "model.name": (None, "text"),
    "model.base_url": (None, "text"),
    "model.price": (None, "price"),
    "model.budget": (0.0, "number from 0"),
    "model.token_cap": (None, "whole number from 1"),
    "model.key_variable": (None, "text"),
    "model.endpoint": (None, "text"),
    "model.temperature": (None, "number from 0"),
    "model.reasoning_effort": (None, "text"),
    "model.answer_tokens": (25, "whole number from 1"),
    "model.form": ("json", "json|batched|single"),
    "model.batch": (10, "whole number from 1"),
    "model.samples": (1, "whole number from 1"),
    "model.nameless": (False, "true|false"),
    "labels": (400, "whole number from 5"),
    "predictor": ("auto", "auto|model|regression|average"),
    "search.iterations": (30, "whole number from 1"),
    "search.population": (125, "whole number from 5"),
    "search.seed": (0, "whole number from 0"),
    "search.costly": (None, "location"),
    "search.switch": (15, "whole number from 0"),
    "propose.n": (5, "whole number from 1"),
    "propose.distance": (0.15, "number from 0 to 1"),
    "folder": (None, "text"),
}
#: Fields that may differ when a run goes on, since what is done does not depend on them.
FREE = ("model.price", "model.budget", "model.token_cap", "model.key_variable", "model.base_url", "model.recording", "folder", "trained")
#: How tables are read, which shows in the networks and scores that come of it.
READING = ("columns", "repeats", "inactive", "longer_lists")
# What is expected of each kind that does not say it by itself.
_WORDS = {
    "text": "one line of text",
    "space": "a file, a name or MODULE:NAME",
    "location": "MODULE:NAME",
    "pairs": "pairs of texts, [[input, output], ...]",
    "cost": "{column: NAME, unit: TEXT} or {python: MODULE:FUNCTION, unit: TEXT}",
    "price": "{prompt: P, answer: A, date: 'YYYY-MM-DD'}, the prices of a million tokens",
}


def _read(kind: str, value: Any) -> Any:
    """Return the value of a field of a kind; raises ValueError saying what is expected."""
    if kind == "texts":
        return [_read("text", item) for item in value] if isinstance(value, list) and value else [_read("text", value)]
    if kind in ("names", "costs", "limits"):
        if not isinstance(value, Mapping):
            raise ValueError(f"expected names and what they are, got {value!r}")
        of = {"names": "text", "costs": "cost", "limits": "limit"}[kind]
        return {_read("text", name): _read(of, item) for name, item in value.items()}
    if kind == "pairs" and isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return [[_read("text", part) for part in pair] for pair in value]
    if kind == "limit":
        # A number, and its unit if it has one.
        text = re.fullmatch(r"([-+.\deE]*[.\d])\s*((?<=\s)\S.*|[^-+.\d\s].*)?", value.strip()) if isinstance(value, str) else None
        with contextlib.suppress(ValueError):
            value = float(text[1]) if text else value
        if is_number(value):
            return [float(value), text[2] if text else None]
        raise ValueError(f"expected a number, or one with a unit such as '150 ms', got {value!r}")
    if kind == "space" and not isinstance(value, (str, int, float, list)):
        return value
    number = re.fullmatch(r"(whole )?number(?: from (\d+))?(?: to (\d+))?", kind)
    if number:
        low, high = float(number[2] or -math.inf), float(number[3] or math.inf)
        if is_number(value) and low <= value <= high and (value == int(value) or not number[1]):
            return int(value) if number[1] else float(value)
    elif "|" in kind:
        said = str(value).lower() if isinstance(value, bool) else value
        if said in kind.split("|"):
            return said == "true" if kind == "true|false" else value
    elif kind == "cost":
        if isinstance(value, Mapping) and len(set(value) & {"column", "python"}) == 1 and set(value) <= {"column", "python", "unit"}:
            return {key: _read("location" if key == "python" else "text", text) for key, text in value.items()}
    elif kind == "price":
        if isinstance(value, Mapping) and {"prompt", "answer", "date"} <= set(value) <= {"prompt", "answer", "date", "currency"}:
            return dict(value)
    elif isinstance(value, str) and re.fullmatch(r"[\w.]+:[A-Za-z_]\w*" if kind == "location" else r".*\S.*", value):
        return value
    expected = _WORDS.get(kind) or (f"a {kind}" if number else " or ".join(kind.split("|")))
    raise ValueError(f"expected {expected}, got {value!r}")


_GROUPS = {name.partition(".")[0] for name in FIELDS if "." in name}


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
    given: Any = run
    tree, file, base = None, "run", Path()
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
            flat[str(name)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            problems.add(f"{found.at(name)}: {name}: expected {', '.join(_below(name))} below it, got {value!r}")
    for name in flat:
        if name not in FIELDS:
            group = name.partition(".")[0]
            known = _below(group) or list(dict.fromkeys(field.partition(".")[0] for field in FIELDS))
            near = meant(name.partition(".")[2] or name, known) or f"; fields are {', '.join(known)}"
            problems.add(f"{found.at(name)}: unknown field {name!r}{near}")
    fields = {}
    for name, (default, kind) in FIELDS.items():
        if flat.get(name) is not None:
            with problems.collect(), named(f"{found.at(name)}: {name}"):
                fields[name] = _read(kind, flat[name])
        elif default is REQUIRED:
            problems.add(f"{found.at(name)}: {name} is missing")
        else:
            fields[name] = default
    if len(fields) == len(FIELDS):
        found = Run(fields, file, base, tree)
        _check_together(found, problems)
    problems.check()
    return found


def _below(group: str) -> list[str]:
    return [name.partition(".")[2] for name in FIELDS if name.startswith(f"{group}.")]


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
