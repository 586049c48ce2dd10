"""Ways to choose a network that reads digits from ten trained ones, what they choose, and what that loses to the best.

`llmpp_book.studies.digits` knows all networks; choices that take long are kept in results/digits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import RegressorMixin
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llmpp_book import repository
from llmpp_book.studies.digits import RESULTS, Known, known, space, splits
from llmpp_core.jobs.table import Table
from llmpp_core.metrics import Interval
from llmpp_core.predictors.baselines import TablePredictor
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.predictors.student import StudentRecipe, train
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit

#: How many tens of trained networks every way chooses from, by the share of the networks (those with the fewest parameters) it may choose.
#: Under a single limit counting parameters may win or lose by chance: a good network may be just within.
TENS = {1.0: 200, **{tenths / 10: 23 for tenths in range(1, 10)}}
#: Networks that a student learns from.
LABELS = 300
#: Iterations and sizes of an evolutionary search; with short trainings it has few, for in a space this small more would train all of it.
ITERATIONS, SHORT_ITERATIONS, SIZES = 10, 3, {"population": 25, "parents": 5, "mutants": 10, "crossovers": 10}
#: Takes what is known, the rows of the trained networks, of whose scores it may look at no others', and a seed; returns the row it chooses.
Way = Callable[[Known, np.ndarray, int], int]


def _regression(learner: Any) -> Way:
    def choose(of: Known, ten: np.ndarray, seed: int) -> int:
        return of.best(predicted(learner, of, ten))

    return choose


def predicted(learner: RegressorMixin, of: Known, ten: np.ndarray) -> np.ndarray:
    """Return what a regression on the averaged features, fitted to ten networks, predicts for all; shape (n,)."""
    return make_pipeline(StandardScaler(), learner).fit(of.features[ten], of.seen[ten]).predict(of.features)


def ridge() -> RidgeCV:
    """Return a ridge regression that chooses its penalty by leave-one-out."""
    return RidgeCV(np.logspace(-3, 3, 13))


def process() -> GaussianProcessRegressor:
    """Return a Gaussian process over standardised features."""
    # A fixed, smooth prior over some ten standardised features, as in chapter 3: ten points do not determine a kernel.
    return GaussianProcessRegressor(10.0 * RBF(12.0) + WhiteKernel(0.1), optimizer=None, normalize_y=True)


def _random(of: Known, ten: np.ndarray, seed: int) -> int:
    return int(np.random.default_rng(seed).choice(np.flatnonzero(of.allowed)))


def _best_of(of: Known, trained: np.ndarray) -> int:
    return of.best(np.where(np.isin(np.arange(len(of.seen)), trained), of.seen, -np.inf))


def _search(of: Known, schedule: Sequence[tuple[np.ndarray, int]], seed: int) -> tuple[int, int]:
    """Return the row that an evolutionary search finds with predictions for all networks, and how many it asked the last of them."""
    entries = [(TablePredictor(dict(zip(of.networks, predicted.tolist(), strict=True))), n) for predicted, n in schedule]
    searched: Any = space()
    limit = Limit(searched.costs["parameters"], of.limit, "parameters")
    names = [f"predictor {i}" for i in range(len(entries))]
    records = EvolutionarySearch(searched, entries, limit, **SIZES, seed=seed, names=names).run().records
    return of.networks.index(records[-1].best), sum(record.evaluations.get(names[-1], 0) for record in records)


def _distilled(of: Known, ten: np.ndarray, seed: int) -> int:
    labelled = np.random.default_rng(seed).choice(len(of.networks), LABELS, replace=False)
    recipe = StudentRecipe(**{field.name: getattr(DistilledPredictor(), field.name) for field in fields(StudentRecipe)})
    labels, rising = predicted(ridge(), of, ten)[labelled], np.ones(of.features.shape[1], dtype=bool)
    student, *_ = train(of.features[labelled], labels, recipe, rising, np.random.default_rng(seed))
    return _search(of, [(student.predict(of.features).mean(axis=0), ITERATIONS)], seed)[0]


def _halves(of: Known, ten: np.ndarray, seed: int) -> tuple[int, int]:
    return _search(of, [(predicted(ridge(), of, ten), ITERATIONS), (of.short, SHORT_ITERATIONS)], seed)


def _more_trained(of: Known, ten: np.ndarray, seed: int) -> int:
    """Train for as long as HS-NAS's short trainings take, but other networks at random, and to the end."""
    more = _halves(of, ten, seed)[1] * of.short_seconds.mean() / of.seconds.mean()
    others = np.setdiff1d(np.flatnonzero(of.allowed), ten)
    return _best_of(of, np.append(ten, np.random.default_rng(seed).permutation(others)[: round(more)]))


#: Ways to choose that ask no language model. Each takes what is known, the rows of the trained networks, of whose scores it may look at no
#: others', and a seed, and returns the row of its choice.
WAYS: dict[str, Way] = {
    "at random": _random,
    "most parameters": lambda of, ten, seed: of.best(of.parameters),
    "best of the ten": lambda of, ten, seed: _best_of(of, ten),
    "ridge regression": _regression(ridge()),
    "Gaussian process": _regression(process()),
    "gradient boosting": _regression(GradientBoostingRegressor(n_estimators=50, random_state=0)),
    "student of the ridge regression, searched": _distilled,
    "HS-NAS: ridge regression, then short trainings": lambda of, ten, seed: _halves(of, ten, seed)[0],
    "best of the ten and of others, trained as long": _more_trained,
}


def kept(frame: pd.DataFrame, shares: Sequence[float], results: Path = RESULTS) -> list[tuple[Known, pd.DataFrame]]:
    """Return what is known, and the choices that were kept, under each limit of `TENS` that is asked for, as `regrets` takes them."""
    parts = [(share, known(frame, share)) for share in shares]
    return [(of, recorded_choices(of, splits(TENS[share], np.random.default_rng(0), of), results)) for share, of in parts]


def recorded_choices(of: Known, tens: np.ndarray, results: Path = RESULTS) -> pd.DataFrame:
    """Return the row that each way chose from each ten, one row per ten and one column per way, as `record_choices` has kept it.

    ValueError where it did not, or for other networks or tens.
    """
    rows = _choices_table(of, results).rows()
    found = {tuple(row["rows"]): row["chosen"] for row in rows if row["limit"] == of.limit}
    if missing := [number for number, ten in enumerate(tens) if tuple(ten.tolist()) not in found]:
        raise ValueError(f"{results}: no choices from ten {missing[0]} of {len(tens)}; llmpp digits makes them{repository.HINT}")
    names = pd.Index([" ".join(map(str, ten)) for ten in tens], name="ten")
    return pd.DataFrame([found[tuple(ten.tolist())] for ten in tens], index=names)


def record_choices(of: Known, tens: np.ndarray, results: Path = RESULTS, seconds: float = math.inf, progress: bool = False) -> bool:
    """Let every way choose from each ten, keep what it chooses, go on where that was stopped, and return whether all is there."""
    stop = time.monotonic() + seconds

    def work(ten: np.ndarray, seed: int) -> dict[str, Any] | None:
        if time.monotonic() > stop:
            return None
        return {"chosen": {name: int(way(of, ten, seed)) for name, way in WAYS.items()}}

    jobs = [({"limit": of.limit, "rows": ten.tolist()}, (ten, number)) for number, ten in enumerate(tens)]
    return len(_choices_table(of, results).run(work, jobs, progress="choices" if progress else None)) == len(tens)


def _choices_table(of: Known, results: Path) -> Table:
    seen = hashlib.sha256(np.round([of.seen, of.short, of.parameters], 4).tobytes()).hexdigest()
    settings = {"labels": LABELS, "iterations": [ITERATIONS, SHORT_ITERATIONS], **SIZES}
    return Table(results / "choices.jsonl", {"scores_sha256": seen, "ways": list(WAYS), "settings": settings})


def regrets(parts: Sequence[tuple[Known, pd.DataFrame]], rng: np.random.Generator) -> pd.DataFrame:
    """Return how far each way falls short of the best known network within the limit, in percentage points of accuracy.

    Parameters
    ----------
    parts : sequence of (Known, pandas.DataFrame)
        For each limit, what is known, and what `recorded_choices` returned. One limit says little: a good network may be just above it.
    rng : numpy.random.Generator
        Resamples the tens, 2,000 times, the same for all ways.

    Returns
    -------
    pandas.DataFrame
        One row per way: its mean "regret", and "difference" to that of "best of the ten", both an `Interval`, and "better networks", the
        share, in percent, of those within the limit that are better than its choice, mean over the tens. Intervals are about the tens; the
        table is the same for all.

    Notes
    -----
    The best known network is the best by the mean of two seeds, and so a little lucky: all regrets are too large by the same amount, which
    `ceiling` estimates. Differences do not have this bias.
    """
    found = [_lost(of, chosen) for of, chosen in parts]
    lost, better = (np.vstack(columns) for columns in zip(*found, strict=True))
    # Limits share tens, and a ten is drawn with all its choices.
    which, tens = pd.factorize(np.concatenate([chosen.index for _, chosen in parts]))
    drawn = rng.multinomial(len(tens), np.full(len(tens), 1 / len(tens)), size=2000)[:, which]
    drawn = drawn / drawn.sum(axis=1, keepdims=True)
    names = list(parts[0][1].columns)

    def intervals(values: np.ndarray) -> list[Interval]:
        ends = np.quantile(drawn @ values, [0.025, 0.975], axis=0)
        return [Interval(*map(float, three)) for three in zip(values.mean(axis=0), *ends, strict=True)]

    differences = lost - lost[:, [names.index("best of the ten")]]
    columns = {"regret": intervals(lost), "difference": intervals(differences), "better networks": better.mean(axis=0)}
    return pd.DataFrame(columns, index=names)


def _lost(of: Known, chosen: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return what each choice loses, and which percentage of the networks within the limit is better; shape (tens, ways)."""
    top, reached = np.sort(of.held_out[of.allowed]), of.held_out[chosen.to_numpy()]
    return top[-1] - reached, 100 * (len(top) - np.searchsorted(top, reached, side="right")) / len(top)
