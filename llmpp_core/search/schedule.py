"""Which predictor scores the candidates in which iteration of a search: fixed schedules, and rules that decide on the way.

A schedule is a list whose entries are pairs of predictor and number of iterations, or `Adaptive`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from scipy.stats import kendalltau
from sklearn.pipeline import Pipeline

from llmpp_core.space.architecture import Architecture


@dataclass
class Candidates:
    """What a rule sees: the n candidates of an iteration, first the parents of the next, then the rest, both best first."""

    archs: Sequence[Architecture]
    #: The cheap predictor's scores, shape (n,).
    scores: np.ndarray
    #: How many of them are the parents.
    parents: int
    #: The predictor in use.
    cheap: Any
    #: The costly predictor's scores, shape (n,), nan where it was not asked, in this iteration or before.
    costly: np.ndarray
    #: What the rule returned after the earlier iterations of this entry of the schedule; None for nan.
    history: list[dict[str, float | None]]
    #: Takes positions of candidates, has the costly predictor score those it does not know, and fills in `costly`. What is asked is
    #: counted as evaluations, and remembered for when this predictor takes over.
    ask: Callable[[Sequence[int]], None]


class Rule(Protocol):
    """Decides whether the costly predictor takes over: any callable, best a frozen dataclass, whose repr goes into the records.

    It is asked after every iteration with the cheap predictor. It may depend on what it is given only, or a resumed search differs.
    """

    def __call__(self, candidates: Candidates) -> tuple[bool, dict[str, float]]:
        """Return whether to switch before the next iteration, and numbers to keep in the record."""
        ...


@dataclass(frozen=True)
class Disagreement:
    """Switch when the two predictors contradict each other.

    In each iteration the costly predictor scores a few candidates, evenly spaced in the cheap one's ranking, parents and rejected
    ones, and Kendall's tau is taken over all that it knows. Parents alone would not do: they are so alike that hardly any two
    predictors agree on their order, while it is the choice between them and the rest that moves the search.

    Parameters
    ----------
    probe : int
        How many candidates are scored in an iteration, at most.
    threshold : float
        Switch when the mean tau is below. With 0, as soon as the costly predictor would rather choose others.
    window : int
        The mean is over this many iterations, the latest, since one tau of so few is mostly chance; before there are so many there is
        no switch.
    """

    probe: int = 10
    threshold: float = 0.0
    window: int = 5

    def __call__(self, candidates: Candidates) -> tuple[bool, dict[str, float]]:
        """Return whether the mean tau is below the threshold, and this iteration's."""
        n = len(candidates.scores)
        candidates.ask(sorted({round(position) for position in np.linspace(0, n - 1, min(self.probe, n))}))
        known = ~np.isnan(candidates.costly) & ~np.isnan(candidates.scores)
        tau = float(kendalltau(candidates.scores[known], candidates.costly[known]).statistic)
        recent = [*(numbers["tau"] for numbers in candidates.history), tau][-self.window :]
        # No order at all, as where all scores are equal, is no agreement: tau 0.
        mean = np.mean([value if value is not None and np.isfinite(value) else 0.0 for value in recent])
        return len(recent) == self.window and bool(mean < self.threshold), {"tau": tau, "known": int(known.sum())}


@dataclass(frozen=True)
class Uncertainty:
    """Switch when the cheap predictor can no longer tell the parents apart by its own account; costs no evaluations.

    Parameters
    ----------
    factor : float
        Switch when `factor` times the median standard deviation of the parents' scores exceeds the gap between best and worst.
    """

    factor: float = 1.0

    def __call__(self, candidates: Candidates) -> tuple[bool, dict[str, float]]:
        """Return whether the uncertainty exceeds the gap, and both; the cheap predictor has to offer ``return_std``."""
        parents = range(candidates.parents)
        try:
            _, std = candidates.cheap.predict([candidates.archs[i] for i in parents], return_std=True)
        except TypeError as error:
            raise ValueError(f"Uncertainty: {type(candidates.cheap).__name__} does not tell standard deviations ({error})") from None
        uncertainty, gap = float(np.median(std)), float(candidates.scores[0] - candidates.scores[len(parents) - 1])
        return self.factor * uncertainty > gap, {"uncertainty": uncertainty, "gap": gap}


@dataclass(frozen=True, eq=False)
class Adaptive:
    """An entry of a schedule that begins with one predictor and goes on with another when a rule says so.

    Parameters
    ----------
    cheap, costly : regressor over Architecture
        The first and the second predictor.
    iterations : int
        Number of iterations of both together.
    rule : callable
        See `Rule`.
    last : int
        How many iterations the costly predictor has even if the rule never says so, the last ones.

    Raises
    ------
    ValueError
        Unless `last` leaves each of them an iteration.
    """

    cheap: Any
    costly: Any
    iterations: int = 30
    rule: Rule = Disagreement()
    last: int = 5

    def __post_init__(self) -> None:
        if not all(isinstance(number, Integral) for number in (self.iterations, self.last)) or self.iterations < 2:
            raise ValueError(f"iterations, last: expected whole numbers, the first from 2, got {self.iterations} and {self.last}")
        if not 1 <= self.last < self.iterations:
            raise ValueError(f"last: expected 1 to {self.iterations - 1}, for {self.iterations} iterations in all, got {self.last}")


Entry = tuple[Any, int] | Adaptive


def schedule(name: str, cheap: Any, costly: Any, iterations: int = 30, rule: Rule | None = None) -> list[Entry]:
    """Return a schedule by its name.

    Parameters
    ----------
    name : str
        "cheap" or "costly", one predictor alone; "HS-NAS", the cheap one in the first half of the iterations and the costly one in
        the second; "reversed", the other way round; "switch k", the cheap one in the first k iterations; "adaptive".
    cheap, costly : regressor over Architecture
        In the paper, the distilled predictor and the supernet.
    iterations : int
        In all.
    rule : callable, optional
        For "adaptive"; `Disagreement` with its defaults if left out.

    Raises
    ------
    ValueError
        If there is no such name.
    """
    if name == "adaptive":
        return [Adaptive(cheap, costly, iterations, rule or Disagreement(), min(5, iterations - 1))]
    half = iterations // 2
    known = {"cheap": iterations, "costly": 0, "HS-NAS": half, "reversed": half}
    number = re.fullmatch(r"switch (\d+)", name)
    if name not in known and not (number and int(number[1]) <= iterations):
        raise ValueError(f"schedule: expected {', '.join(known)}, adaptive or switch 0 to switch {iterations}, got {name!r}")
    switch = int(number[1]) if number else known[name]
    first, second = (costly, cheap) if name == "reversed" else (cheap, costly)
    return [(predictor, count) for predictor, count in ((first, switch), (second, iterations - switch)) if count]


def predictors_of(entries: Sequence[Entry]) -> list[Any]:
    """Return the distinct predictors, in the order in which the schedule mentions them."""
    mentioned = [p for entry in entries for p in ((entry.cheap, entry.costly) if isinstance(entry, Adaptive) else entry[:1])]
    return list({id(predictor): predictor for predictor in mentioned}.values())


def default_names(predictors: Sequence[Any]) -> list[str]:
    """Return the name of each predictor's class, or of a pipeline's last step; numbered where they are the same."""
    classes = [type(p.steps[-1][1] if isinstance(p, Pipeline) else p).__name__ for p in predictors]
    repeats = [classes[:i].count(name) for i, name in enumerate(classes)]
    return [f"{name} {count + 1}" if count else name for name, count in zip(classes, repeats, strict=True)]
