"""Spaces of the package ConfigSpace as declared ones; the package is needed only to make what is handed over here.

Of it come the hyperparameters, their values and their conditions. Genomes, sampling and sizes are this package's own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmpp_core.space.choice import MOST_VALUES, Choice
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.formulas import Formula

_SIGNS = {
    "EqualsCondition": "==",
    "NotEqualsCondition": "!=",
    "LessThanCondition": "<",
    "GreaterThanCondition": ">",
    "ForbiddenEqualsClause": "==",
    "ForbiddenLessThanRelation": "<",
    "ForbiddenGreaterThanRelation": ">",
    "ForbiddenEqualsRelation": "==",
}


def from_configspace(
    space: Any,
    *,
    steps: Mapping[str, int] | None = None,
    order: Sequence[str] | None = None,
    costs: Mapping[str, Any] | None = None,
    network: str = "a neural network",
) -> DeclaredSpace:
    """Return a ConfigSpace.ConfigurationSpace as a declared space.

    Hyperparameters ``x_0``, ``x_1``, ... of the same values, of which each is active where one depth is larger than its number, become
    a single choice that is made per layer. Forbidden clauses become rules.

    Parameters
    ----------
    space : ConfigSpace.ConfigurationSpace
    steps : mapping of str to int, optional
        In how many values, 2 to 62, to divide a continuous hyperparameter, or integers.
    order : sequence of str, optional
        Names of choices in the order of the lines of a prompt; those left out follow. ConfigSpace has them in alphabetical order.
    costs, network
        As in `llmpp_core.space.declared.DeclaredSpace`.

    Raises
    ------
    ValueError
        Naming the hyperparameter, and what is to be given.

    Warns
    -----
    UserWarning
        If there are priors or weights, of which nothing is kept.
    """
    if not hasattr(space, "conditional_hyperparameters") or not hasattr(space, "forbidden_clauses"):
        raise ValueError(f"expected a ConfigSpace.ConfigurationSpace, got {type(space).__name__}")
    steps, known = dict(steps or {}), dict(space)
    for name, count in steps.items():
        if name not in known:
            raise ValueError(f"steps: {name!r} is no hyperparameter; there are {', '.join(known)}")
        if not hasattr(known[name], "lower"):
            raise ValueError(f"steps: {name!r} is no range that could be divided")
        if not isinstance(count, int) or not 2 <= count <= MOST_VALUES:
            raise ValueError(f"steps: {name!r}: expected a whole number from 2 to {MOST_VALUES}, got {count!r}")
    choices = {name: _choice(hyperparameter, steps.get(name)) for name, hyperparameter in known.items()}
    keys = [choice.key for choice in choices.values()]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two of {', '.join(choices)} are written alike in formulas")
    when: dict[str, list[str]] = {}
    for condition in space.conditions:
        when.setdefault(_child(condition), []).append(_formula(condition, choices))
    choices = {name: replace(choice, when=_all(when[name])) if name in when else choice for name, choice in choices.items()}
    rules = [f"({_formula(clause, choices)}) == 0" for clause in space.forbidden_clauses]
    folded = _folded(choices, rules)
    named = [name for name in order or () if name in folded]
    if order and len(named) < len(order):
        raise ValueError(f"order: {', '.join(name for name in order if name not in folded)} is no choice; choices are {', '.join(folded)}")
    listed = [folded[name] for name in (*named, *(name for name in folded if name not in named))]
    return DeclaredSpace(str(space.name or "imported space"), listed, network=network, rules=rules, costs=costs)


def _choice(hyperparameter: Any, steps: int | None) -> Choice:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", hyperparameter.name)
    name = name if name[:1].isalpha() else f"x{name}"
    if name != hyperparameter.name:
        raise ValueError(f"{hyperparameter.name!r}: a name has letters, digits, - and _, first a letter, such as {name!r}")
    kind = type(hyperparameter).__name__
    if getattr(hyperparameter, "weights", None) is not None or kind.startswith(("Normal", "Beta")):
        warnings.warn(f"{name!r}: its prior or weights are not kept; values are drawn uniformly", UserWarning, stacklevel=4)
    if hasattr(hyperparameter, "sequence") or hasattr(hyperparameter, "choices"):
        values = [_plain(v) for v in getattr(hyperparameter, "sequence", None) or hyperparameter.choices]
        numeric = all(isinstance(v, (int, float)) for v in values)
        return Choice(name, values, order="more" if numeric and hasattr(hyperparameter, "sequence") else "none")
    if hasattr(hyperparameter, "value"):
        return Choice(name, [_plain(hyperparameter.value)], order="none")
    low, high = _plain(hyperparameter.lower), _plain(hyperparameter.upper)
    whole = isinstance(low, int) and isinstance(high, int)
    if steps is None and (not whole or high - low >= MOST_VALUES):
        what = "is continuous" if not whole else f"has {high - low + 1:,} values"
        raise ValueError(f"{name!r} {what}; give steps={{{name!r}: 9}}")
    points = np.geomspace(low, high, steps) if hyperparameter.log and steps else np.linspace(low, high, steps or high - low + 1)
    values = [round(p) if whole else float(f"{p:.6g}") for p in points.tolist()]
    return Choice(name, list(dict.fromkeys(values)), bounds=(low, high) if steps else None)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _child(condition: Any) -> str:
    return _child(condition.components[0]) if hasattr(condition, "components") else condition.child.name


def _formula(given: Any, choices: Mapping[str, Choice]) -> str:
    """Return a condition or a forbidden clause as a formula; a list of equalities where numbers do not tell."""
    kind = type(given).__name__
    if hasattr(given, "components"):
        parts = [_formula(part, choices) for part in given.components]
        return _any(parts) if kind == "OrConjunction" else _all(parts)
    if hasattr(given, "left"):
        return f"({choices[given.left.name].key} {_SIGNS[kind]} {choices[given.right.name].key})"
    choice = choices[(given.parent if hasattr(given, "parent") else given.hyperparameter).name]
    if kind in ("InCondition", "ForbiddenInClause"):
        return _any([_equal(choice, value) for value in given.values])
    sign, value = _SIGNS[kind], _plain(given.value)
    # In the order of its sequence, whatever numbers are in it.
    if sign in ("<", ">") and hasattr(given.parent, "sequence"):
        place = choice.values.index(value)
        return _any([_equal(choice, v) for v in (choice.values[:place] if sign == "<" else choice.values[place + 1 :])])
    return f"({choice.key} {sign} {_written(value)})"


def _equal(choice: Choice, value: Any) -> str:
    return f"({choice.key} == {_written(_plain(value))})"


def _written(value: Any) -> str:
    return repr(int(value)) if isinstance(value, bool) else repr(value)


def _all(parts: Sequence[str]) -> str:
    return "*".join(parts)


def _any(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(({' + '.join(parts) or '0'}) > 0)"


def _folded(choices: Mapping[str, Choice], rules: Sequence[str]) -> dict[str, Choice]:
    """Return choices, those of layers put together."""
    stems: dict[str, dict[int, Choice]] = {}
    for name, choice in choices.items():
        match = re.fullmatch(r"(.+)_(\d+)", name)
        if match and match[1] not in choices:
            stems.setdefault(match[1], {})[int(match[2])] = choice
    found, gone = dict(choices), dict[str, str]()
    for stem, layers in stems.items():
        first = min(layers)
        numbers = sorted(layers)
        alike = {(layer.values, layer.order) for layer in layers.values()}
        depth = _depth_of(choices, [layers[i].when for i in numbers])
        if len(numbers) > 1 and first in (0, 1) and numbers == list(range(first, first + len(numbers))) and len(alike) == 1 and depth:
            gone |= {layers[i].name: stem for i in numbers}
            found[stem] = replace(layers[first], name=stem, per=depth, when=None)
    used = {*rules, *(choice.when for choice in found.values() if choice.name not in gone and choice.when)}
    # A choice of a layer on which others, or rules, depend stays as it is.
    kept = {stem for name, stem in gone.items() if any(re.search(rf"\b{re.escape(choices[name].key)}\b", when) for when in used)}
    out: dict[str, Choice] = {}
    for name, choice in choices.items():
        if name not in gone or gone[name] in kept:
            out[name] = choice
        else:
            out.setdefault(gone[name], found[gone[name]])
    return out


def _depth_of(choices: Mapping[str, Choice], conditions: Sequence[str | None]) -> str | None:
    """Return the choice that counts layers, if the i-th condition says that there are more than i and they all do so about one choice."""
    texts = [text for text in conditions if text]
    named = {name for name, choice in choices.items() if any(re.search(rf"\b{re.escape(choice.key)}\b", text) for text in texts)}
    if len(named) != 1:
        return None
    (name,) = named
    depth = choices[name]
    whole = depth.numbers is not None and all(isinstance(n, int) and n > 0 for n in depth.numbers)
    if not whole or depth.when or max(depth.numbers or (0,)) != len(conditions):
        return None
    for i, text in enumerate(conditions):
        for number in depth.numbers or ():
            holds = text is None or bool(Formula(text, {depth.key: depth})({depth.key: float(number)}))
            if holds != (number > i):
                return None
    return name
