"""What predictors say during a search: asked for once per architecture, and ranked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from llmpp_core.search.records import Record
from llmpp_core.space.genes import Genes


class Scores:
    """Scores by predictor and architecture, each asked for once.

    Parameters
    ----------
    genes : Genes

    Attributes
    ----------
    known : dict of str to dict of str to float
        Scores by name of predictor and genome.
    seconds : float
        Time that predictors have taken so far.
    evaluations : dict of str to int
        Numbers of architectures scored since they were last taken by `take`.
    """

    def __init__(self, genes: Genes):
        self.genes = genes
        self.known: dict[str, dict[str, float]] = {}
        self.seconds = 0.0
        self.evaluations: Counter[str] = Counter()

    def predict(self, name: str, predictor: Any, rows: np.ndarray) -> np.ndarray:
        """Ask the predictor about different rows; raises ValueError if it does not give one number each."""
        start = time.perf_counter()
        found = np.asarray(predictor.predict(self.genes.table(rows)), dtype=float)
        self.seconds += time.perf_counter() - start
        if found.shape != (len(rows),):
            raise ValueError(f"{name}: expected one score per architecture, shape ({len(rows)},), got shape {found.shape}")
        return found

    def recall(self, record: Record, costly: str | None = None) -> None:
        """Learn the scores of a record; `costly` is the name of the predictor that its rule asked."""
        self._learn(record.predictor, zip(record.population, record.scores, strict=True))
        if costly is not None:
            self._learn(costly, record.probe.items())

    def _learn(self, name: str, scores: Iterable[tuple[str, float | None]]) -> None:
        self.known.setdefault(name, {}).update((genome, np.nan if score is None else score) for genome, score in scores)

    def take(self) -> dict[str, int]:
        """Return the numbers of evaluations since the last call."""
        taken, self.evaluations = dict(self.evaluations), Counter()
        return taken


def ranking(scores: np.ndarray) -> np.ndarray:
    """Return positions from best to worst; the earlier first where scores agree in ten digits, nan last.

    The last digits of a prediction depend on how many are made at once, which must not decide who is a parent.
    """
    return np.argsort(np.where(np.isnan(scores), np.inf, -to_ten_digits(scores)), kind="stable")


def to_ten_digits(values: np.ndarray) -> np.ndarray:
    """Return values rounded to ten digits, so that they compare alike wherever they were computed; infinite ones and nan stay.

    What is small beside the other values, as a score near zero among larger ones, has no more decimals than these have.
    """
    size = np.abs(values)
    known = size[np.isfinite(size) & (size > 0)]
    if not len(known):
        return values
    # Not the largest of them: beside a penalty of a million, all else would look alike.
    scale = np.maximum(np.where(np.isfinite(size), size, 1.0), np.quantile(known, 0.1))
    digits = 10.0 ** (10 - np.ceil(np.log10(scale)))
    return np.where(np.isfinite(values), np.round(values * digits) / digits, values)


def spread(scores: np.ndarray) -> dict[str, float]:
    """Return least, quartiles and greatest of the scores that are not nan."""
    known = np.sort(scores[~np.isnan(scores)])
    values = np.interp(np.linspace(0, len(known) - 1, 5), np.arange(len(known)), known)
    return dict(zip(("min", "q1", "median", "q3", "max"), values.tolist(), strict=True))


class Ask:
    """One predictor and what it has said."""

    def __init__(self, name: str, predictor: Any, scores: Scores):
        self.name, self.predictor, self._scores = name, predictor, scores

    @property
    def known(self) -> dict[str, float]:
        """Its scores so far, by genome."""
        return self._scores.known.setdefault(self.name, {})

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return scores of different rows of genes, shape (n,), asking for those not known; raises as `Scores.predict`."""
        known, genomes = self.known, self._scores.genes.to_text(rows)
        new = [i for i, genome in enumerate(genomes) if genome not in known]
        if new:
            found = self._scores.predict(self.name, self.predictor, rows[new])
            known.update(zip((genomes[i] for i in new), found.tolist(), strict=True))
            self._scores.evaluations[self.name] += len(new)
        return np.array([known[genome] for genome in genomes], dtype=float)
