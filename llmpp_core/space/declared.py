"""Spaces of networks of any kind, declared by their choices: in Python here, in YAML in `llmpp_core.space.grammar`.

Whether a choice is made may depend on others: on a depth, which says in how many layers it is made, and on a formula. Both become truth
tables when the space is made. So a condition that never or always holds is found, sizes are exact, and a search pays for one look-up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from llmpp_core.space.choice import Choice, is_number, meant, paragraph, show
from llmpp_core.space.cost import Cost, Costs
from llmpp_core.space.genes import MOST_LISTED, ArchitectureTable
from llmpp_core.space.network import Network
from llmpp_core.space.reading import NetworkColumns, read_network
from llmpp_core.space.search_space import as_generator
from llmpp_core.space.structure import SpaceError, Structure

# Draws with which costs are checked, and rules.
_CHECKED, _DRAWN = 1000, 10_000
# Rounds of drawing: rules may leave fewer networks than can be counted.
_ROUNDS = 200


class DeclaredSpace(Structure):
    """A finite space of networks, declared by its choices.

    Parameters
    ----------
    name : str
        Shown in tables and errors.
    choices : sequence of Choice
        In the order of the lines of a prompt; a depth is simply a choice that others name as `per`.
    network : str
        What all networks are: completes "All networks share one backbone, ...".
    constants : mapping of str to float
        Numbers that formulas may name.
    rules : sequence of str
        Formulas that must hold, in every layer if they name a choice of layers.
    costs : mapping of str to str, mapping or callable
        A formula; or formulas under "once" and under names of depths, which are summed over the layers, with a "scale" and a "unit";
        or a function from a list of n networks to n numbers.

    Raises
    ------
    SpaceError
        A ValueError that names the choice, cost or rule, and what is allowed.
    """

    anonymous = ("a task that is not named", "a neural network")

    def __init__(
        self,
        name: str,
        choices: Sequence[Choice],
        *,
        network: str = "a neural network",
        constants: Mapping[str, float] | None = None,
        rules: Sequence[str] = (),
        costs: Mapping[str, Any] | None = None,
    ):
        for what, line in (("space", name), ("network", network)):
            if not isinstance(line, str) or not line.strip() or len(line.splitlines()) > 1:
                raise SpaceError(f"{what}: expected one line of text, got {line!r}", what)
        if isinstance(rules, str):
            raise SpaceError(f"rules: expected a list of formulas, got {rules!r}", "rules")
        super().__init__(name, choices, constants or {})
        self.backbone, self.rules = network, tuple(rules)
        self._rules = [self._rule(i, rule) for i, rule in enumerate(self.rules)]
        if self.combinations() < 2:
            raise SpaceError("the space holds one network: nothing to choose", "choices")
        self._check_rules()
        self._specifications = dict(costs or {})
        self.costs = Costs(self, [self._cost(name, spec) for name, spec in self._specifications.items()])
        self._check_costs()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, DeclaredSpace) and self._record == other._record)

    def __deepcopy__(self, memo: Any) -> DeclaredSpace:
        # Nothing of it changes, and estimators copy their parameters often.
        return self

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> Any:
        words: dict[str, Any] = {"network": self.backbone, "constants": self.constants, "rules": self.rules, "costs": self._specifications}
        return partial(DeclaredSpace, **words), (self.name, self.choices)

    def __repr__(self) -> str:
        return f"DeclaredSpace({self.name!r}, {len(self.choices)} choices, {self.fingerprint()[:16]})"

    def __contains__(self, network: object) -> bool:
        try:
            self.row(network)
        except ValueError:
            return False
        return True

    # What is needed of a space; see `llmpp_core.space.choice.Space`.

    def allowed(self, rows: np.ndarray) -> np.ndarray | None:
        """Return which networks keep the rules, shape (n,); None where there are none."""
        return np.all([rule(self._genes.table(rows)) for rule in self._rules], axis=0) if self._rules else None

    def build(self, rows: np.ndarray) -> list[Network]:
        """Return the networks of rows."""
        networks: list[dict[str, Any]] = [{} for _ in rows]
        for choice in self.choices:
            values, positions = (*choice.values, None), rows[:, self._columns[choice.name]].tolist()
            if choice.per is None:
                for network, (position,) in zip(networks, positions, strict=True):
                    if position >= 0:
                        network[choice.name] = values[position]
                continue
            layers = self.layers[choice.per][rows[:, self._columns[choice.per].start]].tolist()
            for network, found, count in zip(networks, positions, layers, strict=True):
                if max(found) >= 0:
                    network[choice.name] = tuple(values[position] for position in found[:count])
        return [Network(network) for network in networks]

    def row(self, network: Any) -> list[int]:
        """Return the genome of a network; raises ValueError naming the choice, its layer and what is allowed."""
        row = [-1] * len(self.genes)
        for name, value in self.read(network).items():
            choice, start = self.by_name[name], self._columns[name].start
            for layer, v in enumerate((value,) if choice.per is None else value):
                if v is None:
                    continue
                if v not in choice.values:
                    where = name if choice.per is None else f"{name}[{layer}]"
                    raise ValueError(f"not in space {self.name}: {where} is {v}; allowed are {', '.join(map(show, choice.values))}")
                row[start + layer] = choice.values.index(v)
        return row

    def lines(self, network: Any) -> list[str]:
        """Return the lines ``name: value`` of a prompt, one per choice that the network makes."""
        return self.read(network).to_prompt_lines()

    def read(self, source: Any, *, inactive: str = "error", longer_lists: str = "error") -> Network:
        """Return the network that a mapping or lines describe; see `llmpp_core.space.reading.read_network`."""
        return read_network(self, source, inactive, longer_lists)

    def broken(self, network: Network) -> str:
        """Return the first rule that a network breaks, or nothing."""
        columns = NetworkColumns(self, [network])
        return next((text for rule, text in zip(self._rules, self.rules, strict=True) if not rule(columns)[0]), "")

    def describe(self) -> str:
        """Return the paragraph of a prompt on the hyperparameters."""
        return paragraph([choice.described(len(self.depths) > 1) for choice in self.choices])

    def feature_set(self, name: str) -> list[Any]:
        """Return transformers: "costs", "averages", "layers" or "all"; raises ValueError for another name."""
        # Loads scikit-learn, which a space alone does without.
        from llmpp_core.space.table_features import FEATURE_SETS, TableFeatures

        if name not in FEATURE_SETS:
            raise ValueError(f"features: expected names out of {', '.join(FEATURE_SETS)}, got {name!r}")
        if name == "costs" and not self.depths and not any(cost.kind == "formula" for cost in self.costs.values()):
            raise ValueError(f"features: {self.name} has neither formulas of costs nor depths; use averages or layers")
        return [TableFeatures(self, kind) for kind in FEATURE_SETS[name]]

    def smallest(self) -> Network:
        """Return the network of the smallest number of every choice, of the largest where larger means less, of the first of categories.

        Where that breaks a rule, a network drawn at random that differs little from it.
        """
        return self._extreme(1)

    def largest(self) -> Network:
        """Return the opposite of `smallest`."""
        return self._extreme(-1)

    def sample(self, n: int, rng: np.random.Generator) -> list[Network]:
        """Draw networks by drawing every gene uniformly, so that each value of a depth is as frequent."""
        return self.build(self._genes.sample(n, as_generator(rng)))

    def sample_balanced(self, n: int, rng: np.random.Generator) -> list[Network]:
        """Draw `n` different networks, as many of each value of the stratum; those of which there are too few are filled up by others.

        Raises ValueError if the space does not hold so many.
        """
        if n > self.size():
            raise ValueError(f"n: {self.name} holds {self.size():,} networks, too few for {n:,}; draw fewer")
        genes, rng = self._genes, as_generator(rng)
        gene = self._columns[self.stratum].start if self.stratum else 0
        found: dict[int, dict[str, None]] = {}
        if self.combinations() <= max(20 * n, _DRAWN):
            self._add(found, rng.permutation(genes.everything()), gene)
        for _ in range(_ROUNDS):
            if (have := sum(map(len, found.values()))) >= n:
                break
            self._add(found, genes.sample(2 * (n - have) + 100, rng), gene)
        else:
            raise ValueError(f"n: {self.name} seems to hold {have:,} networks that keep its rules, too few for {n:,}; draw fewer")
        listed = [list(found[kind]) for kind in sorted(found)]
        turns = [kind[i] for i in range(max(map(len, listed))) for kind in listed if i < len(kind)]
        return self.build(genes.from_text(turns[:n]))

    def size(self) -> int:
        """Return the exact number of networks; where there are rules and more than a million, that without the rules."""
        found = self.combinations()
        return len(self._genes.everything()) if self._rules and found <= MOST_LISTED else found

    def to_record(self) -> dict[str, Any]:
        """Return the space as JSON or YAML holds it, without costs that are functions of Python."""
        return json.loads(json.dumps(self._record))

    @cached_property
    def _record(self) -> dict[str, Any]:
        # In lists, since the order of choices and of costs matters and that of the keys of a JSON object may be lost.
        choices = []
        for choice in self.choices:
            fields = {"means": choice.numbers, **{key: getattr(choice, key) for key in ("per", "when", "before", "text", "bounds")}}
            given = {key: value for key, value in fields.items() if value not in (None, "", choice.values)}
            choices.append([choice.name, {"values": choice.values, "order": choice.order, **given}])
        costs = [[name, spec] for name, spec in self._specifications.items() if not callable(spec)]
        constants = sorted(self.constants.items())
        record = {"kind": "declared", "space": self.name, "network": self.backbone, "constants": constants, "choices": choices}
        return {**record, "rules": self.rules, "costs": costs}

    def fingerprint(self) -> str:
        """Return the SHA-256 of what decides genomes and what they mean: choices, conditions and rules, but no texts or costs."""
        choices = [[c.name, c.values, c.numbers, c.per, c.when] for c in self.choices]
        return hashlib.sha256(json.dumps([choices, self.rules, sorted(self.constants.items())]).encode()).hexdigest()

    def columns(self, networks: Sequence[Any]) -> ArchitectureTable | NetworkColumns:
        """Return what has the numbers of each choice of many networks; see `llmpp_core.space.genes.ArchitectureTable.values`."""
        if isinstance(networks, ArchitectureTable):
            if networks.space != self:
                raise ValueError(f"expected networks of {self.name}, got some of {networks.space.name}")
            return networks
        if isinstance(networks, NetworkColumns):
            return networks
        return NetworkColumns(self, [self.read(network) for network in networks])

    def _extreme(self, sign: int) -> Network:
        row = []
        for name, _ in self.genes:
            choice = self.by_name[name]
            numbers = np.array(choice.numbers or range(len(choice.values))) * (-1 if choice.order == "less" else 1)
            row.append(int(np.argmin(sign * numbers)))
        rows = self._genes.canonical(np.array([row], dtype=np.int8))
        if self._rules and not np.all(self.allowed(rows)):
            drawn = self._genes.sample(_CHECKED, np.random.default_rng(0))
            rows = drawn[[int((drawn != rows).sum(axis=1).argmin())]]
        return self.build(rows)[0]

    def _sum(self, columns: Any, formula: Any, depth: str | None) -> np.ndarray:
        """Return what a formula gives, shape (n,), or (n, layers) and 0 in absent layers."""
        found = formula(self.arrays(columns, formula.names, depth))
        if depth is None:
            return np.broadcast_to(found, len(columns))
        layers = columns.values(depth)[:, None]
        present = np.arange(self.layers[depth].max()) < layers
        return np.where(present, found, 0.0)

    def _rule(self, i: int, rule: Any) -> Callable[[Any], np.ndarray]:
        where = ("rules", i)
        words = set(re.findall(r"[A-Za-z]\w*", rule)) if isinstance(rule, str) else set()
        used = [c for c in self.choices if c.per and words & {c.key, f"{c.key}_before"}]
        once = [c for c in self.choices if not c.per and c.key in words]
        ends = [(c, end) for c in self.choices for end in ("first", "last") if c.per and f"{c.key}_{end}" in words]
        depths = list(dict.fromkeys(choice.per for choice in used))
        if len(depths) > 1:
            raise SpaceError(f"rule {rule!r}: it names choices of the layers of {' and '.join(map(str, depths))}; one is allowed", *where)
        depth = depths[0] if depths else None
        formula = self.formula(f"rule {rule!r}", rule, depth, *where)

        def holds(columns: Any) -> np.ndarray:
            found = np.nan_to_num(self._sum(columns, formula, depth)) != 0
            absent = np.zeros(len(columns), dtype=bool)
            for choice in once:
                absent |= columns.positions(choice.name)[:, 0] == -1
            for choice, end in ends:
                made = columns.positions(choice.name) != -1
                layer = np.maximum(columns.values(choice.per).astype(int) - 1, 0) * (end == "last")
                absent |= ~made[np.arange(len(made)), layer]
            if depth is None:
                return found | absent
            made = np.zeros(found.shape, dtype=bool)
            for choice in used:
                made |= columns.positions(choice.name) != -1
            return absent | (found | ~made).all(axis=1)

        return holds

    def _check_rules(self) -> None:
        rows = self._genes.canonical(self._genes.random(_DRAWN, np.random.default_rng(0))) if self._rules else np.empty(0)
        kept = np.ones(len(rows), dtype=bool)
        for i, (rule, text) in enumerate(zip(self._rules, self.rules, strict=True)):
            kept &= rule(self._genes.table(rows))
            if not kept.any():
                raise SpaceError(f'no network of {_DRAWN:,} drawn keeps "{text}"', "rules", i)

    def _cost(self, name: str, given: Any) -> Cost:
        if callable(given):
            return Cost(name, given, self, kind="python")
        where = ("costs", name)
        spec = {"once": given} if isinstance(given, (str, int, float)) else given
        allowed = ("once", "scale", "unit", *self.depths)
        if not isinstance(name, str) or not isinstance(spec, Mapping):
            raise SpaceError(f"cost {name!r}: expected a formula, or a mapping with {', '.join(allowed)}", *where)
        for key in spec:
            if key not in allowed:
                raise SpaceError(f"cost {name!r}: unknown {key!r}; allowed are {', '.join(allowed)}{meant(key, allowed)}", *where, key)
        scale, unit = spec.get("scale", 1), spec.get("unit", "")
        if not is_number(scale) or not isinstance(unit, str):
            raise SpaceError(f"cost {name!r}: expected a number as scale and a text as unit", *where)
        parts: dict[str | None, Any] = {}
        for key in ("once", *self.depths):
            if key in spec:
                depth = None if key == "once" else key
                parts[depth] = self.formula(f"cost {name!r}", spec[key], depth, *where, key)
        if not parts:
            raise SpaceError(f"cost {name!r}: no formula; write one under {', '.join(('once', *self.depths))}", *where)

        def total(networks: Any) -> np.ndarray:
            columns = self.columns(networks)
            found = np.zeros(len(columns))
            for depth, formula in parts.items():
                values = self._sum(columns, formula, depth)
                found = found + (values if depth is None else values.sum(axis=1))
            return float(scale) * found

        return Cost(name, total, self, unit)

    def _check_costs(self) -> None:
        """Refuse formulas that are not positive somewhere, since their logarithms are features and limits are shares of them."""
        rows = self._genes.encode([self.smallest(), self.largest()])
        table = self._genes.table(np.vstack([rows, self._genes.sample(_CHECKED, np.random.default_rng(0))]))
        for cost in self.costs.values():
            if cost.kind == "formula":
                found = cost.function(table)
                if len(bad := np.flatnonzero(~(np.isfinite(found) & (found > 0)))):
                    shown = ", ".join(table[int(bad[0])].to_prompt_lines())
                    raise SpaceError(f"cost {cost.name!r} is {found[bad[0]]:g} for {shown}", "costs", cost.name)

    def _add(self, found: dict[int, dict[str, None]], rows: np.ndarray, gene: int) -> None:
        for kind, genome in zip(rows[:, gene].tolist(), self._genes.to_text(rows), strict=True):
            found.setdefault(kind if self.stratum else 0, {})[genome] = None
