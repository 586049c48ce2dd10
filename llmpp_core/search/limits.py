"""Limits on what an architecture may cost and, where nothing is within them, what the least is and what each choice adds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from llmpp_core.space.choice import Space
from llmpp_core.space.cost import Cost, flop_counts
from llmpp_core.space.genes import Genes
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import SearchSpace

# A cost may exceed its limit by this part: the last digits of a prediction depend on how many are made at once.
_ROUNDING = 1e-9
# Rounds and random starts of the search for the cheapest architecture.
_ROUNDS, _STARTS = 50, 4
# Most combinations of depths and other gates to start from.
_GATES = 256


@dataclass(frozen=True, eq=False)
class Limit:
    """An upper limit on a cost.

    Parameters
    ----------
    cost : callable or regressor over networks
        Returns an array of n costs for a sequence of n architectures, by call or by ``predict``. It should be quick on many at
        once and always say the same of the same architecture; one that measures should remember what it measured.
    limit : float
        The largest cost allowed. Infinity where a cost is to be recorded, or is an objective, without being limited.
    name, unit : str
        For records and errors.

    Raises
    ------
    ValueError
        If the limit is no number, or the cost neither callable nor a regressor.
    """

    cost: Any
    limit: float
    name: str = "cost"
    unit: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, Real) or self.limit != self.limit:
            raise ValueError(f"{self.name}: a limit must be a number, got {self.limit!r}")
        if not (callable(self.cost) or hasattr(self.cost, "predict")):
            raise ValueError(f"{self.name}: expected a cost to call, or with a method predict, got {self.cost!r}")

    def costs(self, archs: Sequence[Any]) -> np.ndarray:
        """Return the costs of n architectures, shape (n,); raises ValueError if the cost does not take or give so many."""
        archs = as_list(archs, kind=object)
        try:
            costs = np.asarray(self.cost.predict(archs) if hasattr(self.cost, "predict") else self.cost(archs), dtype=float)
        except AttributeError as error:
            if error.obj is not archs:
                raise
            raise ValueError(
                f"{self.name}: the cost is called with many architectures at once and must return one number for each; it asked the whole "
                f"sequence for {error.name!r}, as if it were one architecture"
            ) from None
        if costs.shape != (len(archs),):
            raise ValueError(f"{self.name}: expected one cost per architecture, shape ({len(archs)},), got shape {costs.shape}")
        return costs

    def kept(self, costs: np.ndarray) -> np.ndarray:
        """Return which costs are within the limit, shape (n,); nan is not."""
        return costs <= self.limit + (_ROUNDING * abs(self.limit) if np.isfinite(self.limit) else 0.0)

    def text(self, cost: float) -> str:
        """Return a cost to four digits, or whole where that takes more, with its unit."""
        return f"{cost:,.4g} {self.unit}".rstrip() if abs(cost) < 9999.5 else f"{cost:,.0f} {self.unit}".rstrip()


def cost_limit(space: Space, name: str, limit: float) -> Limit:
    """Limit a cost that the space has under that name; raises ValueError naming those that there are."""
    if name not in space.costs:
        raise ValueError(f"limit {name!r}: no such cost of {space.name}; costs are {', '.join(space.costs) or 'none'}")
    return Limit(space.costs[name], limit, name, getattr(space.costs[name], "unit", ""))


def parameter_limit(space: Space, limit: float) -> Limit:
    """Limit the cost "parameters"; of HAT's spaces these are without the embeddings."""
    return cost_limit(space, "parameters", limit)


def flops_limit(space: SearchSpace, limit: float, vocab_size: int | None = None, length: int = 30) -> Limit:
    """Limit the FLOPs of `llmpp_core.space.cost.count_flops`."""
    count = partial(flop_counts, vocab_size=vocab_size, length=length, qkv_dim=space.qkv_dim)
    return Limit(Cost("FLOPs", count, space), limit, "FLOPs")


@dataclass(frozen=True)
class Step:
    """What one change of the cheapest architecture adds: gene `choice` (in `layer`, if it is one of a layer) set to `value`."""

    choice: str
    layer: int | None
    value: Any
    extra: float


class InfeasibleError(ValueError):
    """No architecture is within the limits.

    Attributes
    ----------
    limit : Limit
        The limit that cannot be kept.
    cheapest : Architecture or Network
        The cheapest found: exactly the cheapest where the cost is a sum over the choices of
        the layers present, else by descent from several starts.
    cost : float
        What it costs.
    steps : list of Step
        What every single change of it adds, least first.
    """

    def __init__(self, message: str, limit: Limit, cheapest: Any, cost: float, steps: list[Step]):
        super().__init__(message)
        self.limit, self.cheapest, self.cost, self.steps = limit, cheapest, cost, steps


def all_costs(limits: Sequence[Limit], archs: Sequence[Any]) -> np.ndarray:
    """Return all costs of n architectures, shape (n, limits)."""
    return np.array([limit.costs(archs) for limit in limits]).reshape(len(limits), len(archs)).T


def warn_if_idle(limits: Sequence[Limit], costs: np.ndarray) -> None:
    """Warn of limits that are a hundred times what candidates cost, shape (n, limits), as where they are in another unit."""
    for limit, cost in zip(limits, costs.T, strict=True):
        if 0 < limit.limit < np.inf and len(cost) and cost.max() < limit.limit / 100:
            said = f"the first {len(cost)} candidates cost {limit.text(cost.min())} to {limit.text(cost.max())}"
            reason = f"{limit.name}: {said}, far below the limit of {limit.text(limit.limit)}; is it in the same unit?"
            warnings.warn(reason, UserWarning, stacklevel=4)


def violation(limits: Sequence[Limit], costs: np.ndarray) -> np.ndarray:
    """Return by how much costs, shape (n, limits), exceed the limits: in parts of these and in sum; 0 within all of them."""
    over = np.zeros(len(costs))
    for limit, cost in zip(limits, costs.T, strict=True):
        scale = abs(limit.limit) if 0 < abs(limit.limit) < np.inf else 1.0
        over += np.where(limit.kept(cost), 0.0, np.where(np.isnan(cost), np.inf, (cost - limit.limit) / scale))
    return over


def feasible_row(genes: Genes, limits: Sequence[Limit]) -> np.ndarray:
    """Return one row within all limits, shape (1, genes): the smallest architecture or, if that is not, one found by descent.

    Raises
    ------
    InfeasibleError
        If there is none.
    """
    smallest = genes.encode([genes.space.smallest()])
    if not _violated(genes, limits, smallest).any():
        return smallest
    starts = np.vstack([_every_depth(genes, smallest), genes.sample(_STARTS, np.random.default_rng(0))])
    cheapest = list[np.ndarray]()
    for limit in limits:
        if cheapest and limit.kept(_costs(genes, limit, cheapest[-1])).all():
            # What is cheap by one cost often is by the next, which may be slow, as one that measures.
            if not _violated(genes, limits, cheapest[-1]).any():
                return cheapest[-1]
            continue
        row, cost = cheapest_row(genes, partial(_costs, genes, limit), starts)
        if not limit.kept(np.array(cost)):
            raise _explain(genes, limit, row, f"{genes.space.name} has no architecture within {limit.text(limit.limit)}")
        cheapest.append(row)
    # Each limit can be kept, so the question is whether all can at once.
    row, over = cheapest_row(genes, lambda rows: _violated(genes, limits, rows), np.vstack([*cheapest, starts]))
    if over > 0:
        worst = next(limit for limit in limits if not limit.kept(_costs(genes, limit, row)).all())
        together = " and ".join(f"{limit.name} {limit.text(limit.limit)}" for limit in limits)
        text = f"found no architecture of {genes.space.name} within {together} at once, though each can be kept alone"
        raise _explain(genes, worst, row, text)
    return row


def cheapest_row(genes: Genes, objective: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Minimise an objective by coordinate descent from each of some rows.

    In each round every gene but the gates is set to what is best for it by itself, or only the best change is made if that is better.
    Where the objective is a sum over the genes of the layers present, the first round finds the least for the gates of each row.

    Returns
    -------
    row : numpy.ndarray of shape (1, genes)
    value : float
    """

    def values_of(rows: np.ndarray) -> np.ndarray:
        found = objective(rows)
        return np.where(np.isnan(found), np.inf, found)

    gates = np.concatenate([[-1], *(np.arange(len(genes))[genes.columns[name]] for name in genes.space.gates)])
    values, each = values_of(rows), np.arange(len(rows))
    for _ in range(_ROUNDS):
        near, origins, changed = genes.neighbours(rows)
        costs = values_of(near)
        # From the worst to the best, so that of the values of a gene, and of the changes of a row, the best stays.
        order = np.argsort(-costs, kind="stable")
        better = order[costs[order] < values[origins[order]]]
        if not len(better):
            break
        single, together = rows.copy(), genes.complete(rows)
        single[origins[better]] = near[better]
        inner = better[~np.isin(changed[better], gates)]
        together[origins[inner], changed[inner]] = near[inner, changed[inner]]
        together = genes.canonical(together)
        candidates, scores = np.stack([together, single]), np.stack([values_of(together), values_of(single)])
        pick = np.argmin(scores, axis=0)
        rows, values = candidates[pick, each], scores[pick, each]
    winner = int(np.argmin(values))
    return rows[[winner]], float(values[winner])


def _every_depth(genes: Genes, row: np.ndarray) -> np.ndarray:
    """Return a row with every combination of what others depend on, such as depths; of the last of them, where there are too many."""
    once = [name for name in genes.space.gates if genes.choices[name].per is None]
    while math.prod(len(genes.choices[name].values) for name in once) > _GATES:
        once.pop(0)
    starts = [genes.columns[name].start for name in once]
    combinations = np.indices(genes.cardinalities[starts].tolist()).reshape(len(once), -1) if once else np.zeros((0, 1), dtype=int)
    rows = np.repeat(genes.complete(row), combinations.shape[1], axis=0)
    rows[:, starts] = combinations.T
    return genes.canonical(rows)


def _costs(genes: Genes, limit: Limit, rows: np.ndarray) -> np.ndarray:
    """Return costs, infinite ones of what breaks a rule of the space."""
    return _ruled(genes, rows, limit.costs(genes.table(rows)))


def _violated(genes: Genes, limits: Sequence[Limit], rows: np.ndarray) -> np.ndarray:
    return _ruled(genes, rows, violation(limits, all_costs(limits, genes.table(rows))))


def _ruled(genes: Genes, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    allowed = genes.space.allowed(rows)
    return values if allowed is None else np.where(allowed, values, np.inf)


def _explain(genes: Genes, limit: Limit, row: np.ndarray, what: str) -> InfeasibleError:
    near, _, changed = genes.neighbours(row)
    space, arch, cost = genes.space, genes.table(row)[0], float(_costs(genes, limit, row)[0])
    steps = []
    for gene, changed_row, other in zip(changed.tolist(), near, _costs(genes, limit, near).tolist(), strict=True):
        choice, layer = space.genes[gene]
        steps.append(Step(choice, layer, genes.choices[choice].values[changed_row[gene]], other - cost))
    steps.sort(key=lambda step: step.extra)
    least = {step.choice: step for step in reversed(steps)}
    adds = ", ".join(
        f"{step.choice} {step.value} +{limit.text(step.extra)}" for step in sorted(least.values(), key=lambda step: step.extra)
    )
    values = arch if isinstance(arch, Mapping) else {name: getattr(arch, name) for name in genes.columns}
    choices = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
    message = f"{limit.name}: {what}; the cheapest found costs {limit.text(cost)}: {choices}; the smallest step of each choice adds: {adds}"
    return InfeasibleError(message, limit, arch, cost, steps)


def _short(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return "/".join(str(v) for v in dict.fromkeys(values))
