"""Which networks to train next: the best predicted, others that differ from them, and one that is worth a look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from llmpp_core.pipeline.evidence import Regression, jackknife_plus
from llmpp_core.pipeline.inputs import Inputs
from llmpp_core.search.feasible import Feasible
from llmpp_core.space.choice import is_number
from llmpp_core.space.cost import Cost
from llmpp_core.space.regressor import ArchitectureRegressor
from llmpp_core.space.search_space import SearchSpace

_PLACES = ("best", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# Random networks among which a spread is chosen.
_POOL = 2000
# An interval of 80 % is so many standard deviations wide on each side.
_WIDTH = 1.2816


def place(i: int) -> str:
    """Return the name of the i-th place."""
    return _PLACES[i] if i < len(_PLACES) else f"place-{i + 1}"


class Blend(ArchitectureRegressor):
    """The predictor in use: a regression, a student of a language model, or the mean of both; whichever is not None.

    Parameters
    ----------
    regression : Regression, optional
    student : DistilledPredictor, optional
    """

    def __init__(self, regression: Regression | None, student: Any = None):
        self.regression = regression
        self.student = student

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, networks: Sequence[Any]) -> np.ndarray:
        """Return an array of shape (n,), higher is better."""
        return np.mean([part.predict(networks) for part in (self.regression, self.student) if part is not None], axis=0)

    def folds(self, networks: Sequence[Any], n: int) -> np.ndarray:
        """Return what it says without each of n networks, shape (n, m); the student stays as it is, since its labels would cost anew."""
        parts = [] if self.regression is None else [self.regression.fold_predictions(networks)]
        if self.student is not None:
            parts.append(np.tile(self.student.predict(networks), (n, 1)))
        return np.mean(parts, axis=0)

    def deviation(self, networks: Sequence[Any]) -> np.ndarray:
        """Return about how unsure it is, as standard deviations of shape (n,): by the jackknife, and by the members of the student."""
        parts = []
        if self.regression is not None:
            folds = self.regression.fold_predictions(networks)
            parts.append(np.sqrt(len(folds) - 1) * folds.std(axis=0))
        if self.student is not None:
            parts.append(self.student.predict(networks, return_std=True)[1])
        return np.sqrt(np.sum(np.square(parts), axis=0)) / len(parts)


class Costly(ArchitectureRegressor):
    """A user's function of networks as a predictor, higher is better."""

    def __init__(self, function: Cost, sign: int):
        self.function = function
        self.sign = sign

    def predict(self, networks: Sequence[Any]) -> np.ndarray:
        """Return an array of shape (n,)."""
        return self.sign * self.function(networks)


def distances(inputs: Inputs, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each pair the share of genes that differ, of those that either network has, shape (len(a), len(b)).

    The order of layers does not count: each choice of layers is compared in the order in which the fewest differ.
    """
    differ = made = np.zeros((len(a), len(b)))
    for columns in inputs.genes.columns.values():
        # How often a network has each value, the last being any that may not be proposed.
        values = np.arange(inputs.genes.cardinalities[columns.start] + 1)
        x, y = ((rows[:, columns, None] == values).sum(axis=1) for rows in (a, b))
        either = np.maximum(x.sum(axis=1)[:, None], y.sum(axis=1))
        made, differ = made + either, differ + either - np.minimum(x[:, None], y).sum(axis=2)
    return differ / np.maximum(made, 1)


def trained_rows(inputs: Inputs) -> np.ndarray:
    """Return genomes of the trained networks; a value that may not be proposed has the position after the last one."""
    if isinstance(inputs.space, SearchSpace):
        return inputs.genes.encode(inputs.trained.networks)
    columns = inputs.space.columns(inputs.trained.networks)
    return np.hstack([columns.positions(name) for name in inputs.genes.columns]).astype(np.int8)


def choose(inputs: Inputs, rows: np.ndarray, order: np.ndarray, hopeful: np.ndarray) -> list[tuple[int, str]]:
    """Choose from candidates: positions and why.

    Parameters
    ----------
    rows : numpy.ndarray of shape (n, genes)
        Candidates, none of which is trained.
    order, hopeful : numpy.ndarray of shape (n,)
        Their positions from the best to the worst, by the predicted score, and by that with one standard deviation on top.
    """
    n, least = min(inputs.run["propose.n"], len(rows)), inputs.run["propose.distance"]
    chosen: list[tuple[int, str]] = []

    def take(ranked: np.ndarray, wanted: int, why: str) -> None:
        far = least
        while len(chosen) < wanted:
            taken = [i for i, _ in chosen]
            near = distances(inputs, rows[ranked], rows[taken]).min(axis=1) if taken else np.ones(len(ranked))
            fits = [i for i, distance in zip(ranked, near, strict=True) if distance >= far and i not in taken]
            if fits:
                chosen.append((int(fits[0]), why if chosen else "best predicted"))
            else:
                far = far / 2 if far > 1e-3 else 0.0

    take(order, n - 1 if n >= 5 else n, "good, and different from those above")
    take(hopeful, n, "scout: best if things go well")
    return chosen


def spread_out(inputs: Inputs) -> np.ndarray:
    """Return rows within the limits that are far from what is trained and from each other, shape (m, genes)."""
    trained = trained_rows(inputs)
    pool, _ = Feasible(inputs.genes, inputs.limits).initial(_POOL, np.random.default_rng(inputs.run["search.seed"]))
    near, chosen = distances(inputs, pool, trained).min(axis=1), list[int]()
    pool, near = pool[near > 0], near[near > 0]
    while len(chosen) < min(inputs.run["propose.n"], len(pool)):
        near[chosen] = -1.0
        chosen.append(int(np.argmax(near)))
        near = np.minimum(near, distances(inputs, pool, pool[chosen[-1:]])[:, 0])
    return pool[chosen]


def interval(inputs: Inputs, predictor: Blend, networks: Sequence[Any], left_out: Sequence[float | None], wider: float) -> np.ndarray:
    """Return scores and the ends of their 80 % intervals, as the user has scores, and standard deviations, shape (m, 4).

    `wider` stretches the intervals, and what the user says is possible cuts them off; neither is in the standard deviations.
    """
    known = [i for i, value in enumerate(left_out) if value is not None]
    residuals = np.abs([left_out[i] - inputs.scores[i] for i in known])
    mean, folds = predictor.predict(networks), predictor.folds(networks, len(inputs.scores))[known]
    below, above = jackknife_plus(folds, residuals)
    ends = np.stack([np.minimum(below, mean), np.maximum(above, mean)])
    deviation = np.ptp(ends, axis=0) / (2 * _WIDTH)
    ends = mean + wider * (ends - mean)
    if inputs.sign < 0:
        ends = -ends[::-1]
    # No score is beyond what the user says is possible.
    low, high = (inputs.run[f"score.{end}"] for end in ("low", "high"))
    told = np.column_stack([inputs.sign * mean, *ends]).clip(-np.inf if low is None else low, np.inf if high is None else high)
    return np.column_stack([told, deviation])


def _deviation(row: Mapping[str, Any]) -> float:
    # Earlier rounds do not say it.
    return float(row.get("deviation", (row["high"] - row["low"]) / (2 * _WIDTH * row["widened"])))


def widening(promises: Sequence[dict[str, Any]]) -> float:
    """Return by how much intervals are to be stretched: the root mean squared miss of promises in standard deviations, at least 1."""
    misses = [(row["measured"] - row["score"]) / max(_deviation(row), 1e-12) for row in promises if row["measured"] is not None]
    return max(1.0, float(np.sqrt(np.mean(np.square(misses))))) if misses else 1.0


def beyond(inputs: Inputs, network: Any) -> list[str]:
    """Return in which numbers a network goes beyond all trained ones."""
    trained, said = [_numbers(inputs, other) for other in inputs.trained.networks], []
    for name, here in _numbers(inputs, network).items():
        seen = [number for other in trained for number in other.get(name, [])]
        if here and seen and max(here) > max(seen):
            said.append(f"{name} {max(here):g} > {max(seen):g}")
        if here and seen and min(here) < min(seen):
            said.append(f"{name} {min(here):g} < {min(seen):g}")
    return said


def _numbers(inputs: Inputs, network: Any) -> dict[str, list[float]]:
    values = {name: value if isinstance(value, list) else [value] for name, value in described(inputs, network).items()}
    return {name: [item for item in items if is_number(item)] for name, items in values.items()}


def described(inputs: Inputs, network: Any) -> dict[str, Any]:
    """Return a network as names and JSON values, what is not there left out."""
    return {name: json.loads(value) for name, _, value in (line.partition(": ") for line in inputs.space.lines(network))}


def in_words(network: Mapping[str, Any]) -> dict[str, str]:
    """Return values as short texts, runs of equal ones as "512 x3"."""
    texts = {}
    for name, value in network.items():
        runs = [(item, len(list(same))) for item, same in groupby(value if isinstance(value, list) else [value])]
        texts[name] = ", ".join(f"{item} x{count}" if count > 1 else str(item) for item, count in runs)
    return texts
