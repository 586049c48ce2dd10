"""All networks of a small space, trained on scikit-learn's handwritten digits: the best is known, and with it the regret of every choice.

`llmpp_book.studies.digits_training` fills the tables in results/digits; these functions read them. Whoever chooses sees the first seed.
Regret is measured on the mean of the other seeds, so that no choice is rewarded for the luck of the trainings that it was made by.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import RegressorMixin
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from llmpp_book import repository
from llmpp_core.jobs.table import Table
from llmpp_core.llm.prompts import Efficiency, PromptTask
from llmpp_core.metrics import Interval, kendall_tau, seed_noise
from llmpp_core.predictors.baselines import TablePredictor
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.predictors.student import StudentRecipe, train
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space
from llmpp_core.space.network import Network

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "digits"
#: Tens of trained networks from which every way chooses, and which networks it may choose: all, or the quarter with fewest parameters.
TENS, SHARES = 200, (1.0, 0.25)
#: Networks that a student learns from.
LABELS = 300
#: Iterations and sizes of an evolutionary search; with short trainings it has few, for in a space this small more would train all of it.
ITERATIONS, SHORT_ITERATIONS, SIZES = 10, 3, {"population": 25, "parents": 5, "mutants": 10, "crossovers": 10}


@cache
def space() -> DeclaredSpace:
    """Return the space that digits.yml declares."""
    return read_space(Path(__file__).with_name("digits.yml"))


def _parameters(network: Network) -> float:
    return float(space().costs["parameters"]([network])[0])


def prompt_task() -> PromptTask:
    """Return the task as prompts describe it."""
    return PromptTask(
        "digits",
        description="the recognition of handwritten digits in grey images of 8x8 pixels",
        metric="accuracy",
        metric_description="the percentage of images read correctly, mean over five folds left out",
        low=0.0,
        high=100.0,
        space=space(),
        efficiency=Efficiency("parameters", "the number of trainable weights", _parameters, decimals=0),
    )


def networks() -> list[Network]:
    """Return all networks of the space, in the order of their genomes."""
    return space().build(Genes(space()).everything())


def scores(seed: int | None = None, results: Path = RESULTS) -> pd.DataFrame:
    """Read the accuracies, in percent, of all networks of which every training is done.

    Returns
    -------
    pandas.DataFrame
        One row per network, in the order of `networks`: "network" and one column per seed, "seed 0" and so on, or "score" if one `seed` is
        asked for; then, of the first seed, "short", the accuracy after one epoch, "seconds" and "short seconds", what either training took.

    Raises
    ------
    ValueError
        If the tables are not there, or were made from something else than each other.
    """
    full, short = (_read(results / f"{name}.jsonl") for name in ("digits", "digits.proxy"))
    if full["data_sha256"].iloc[0] != short["data_sha256"].iloc[0]:
        raise ValueError(f"{results}: the two tables were made from different data")
    by_seed = full.pivot(index="row", columns="seed", values="accuracy")
    if seed is not None and seed not in by_seed:
        raise ValueError(f"seed: expected one of {', '.join(map(str, by_seed))}, got {seed!r}")
    frame = by_seed.add_prefix("seed ") if seed is None else by_seed[[seed]].set_axis(["score"], axis=1)
    first = full[full["seed"] == full["seed"].min()].set_index("row")["seconds"]
    frame = frame.join([first, short.set_index("row")[["accuracy", "seconds"]].set_axis(["short", "short seconds"], axis=1)]).dropna()
    listed = networks()
    frame.insert(0, "network", [listed[row] for row in frame.index])
    return frame.sort_index().reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    # All rows are of one recipe and one data set: those of the first.
    first = Table(path).frame(f"llmpp digits{repository.HINT}").iloc[0]
    rows = Table(path, {name: first[name] for name in ("recipe", "data_sha256")}).frame()
    names, order = [choice.name for choice in space().choices], {network: row for row, network in enumerate(networks())}
    return rows.assign(row=[order[space().read(row)] for row in rows[names].to_dict("records")])


class Known(NamedTuple):
    """What is known of n networks, each an array of n numbers unless said otherwise."""

    networks: list[Any]
    #: The first seed, which choices are made by, and the mean of the others, which they are judged by; in percent.
    seen: np.ndarray
    held_out: np.ndarray
    #: Accuracy after the short training, and seconds of both trainings.
    short: np.ndarray
    seconds: np.ndarray
    short_seconds: np.ndarray
    #: The space's averaged features, (n, features).
    features: np.ndarray
    parameters: np.ndarray
    #: Most parameters of a network that may be chosen.
    limit: float

    @property
    def allowed(self) -> np.ndarray:
        """Which networks are within the limit, shape (n,)."""
        return self.parameters <= self.limit

    def best(self, scores: np.ndarray) -> int:
        """Return the row of the highest score within the limit."""
        return int(np.where(self.allowed, scores, -np.inf).argmax())


def known(frame: pd.DataFrame, share: float = 0.5) -> Known:
    """Return what is known of the networks of `scores`, of which the `share` with the fewest parameters may be chosen.

    Where all may be, the one with the most parameters is nearly the best, and there is little to choose.
    """
    if len(frame) < space().size():
        raise ValueError(f"{len(frame):,} of {space().size():,} networks are trained; llmpp digits trains the others{repository.HINT}")
    listed, seeds = list(frame["network"]), frame.filter(regex=r"^seed ").to_numpy()
    parameters = space().costs["parameters"](listed)
    return Known(
        networks=listed,
        seen=seeds[:, 0],
        held_out=seeds[:, 1:].mean(axis=1),
        short=frame["short"].to_numpy(),
        seconds=frame["seconds"].to_numpy(),
        short_seconds=frame["short seconds"].to_numpy(),
        features=make_union(*space().feature_set("averages")).transform(listed),
        parameters=parameters,
        limit=float(np.quantile(parameters, share)),
    )


def splits(n: int, rng: np.random.Generator, of: Known, size: int = 10) -> np.ndarray:
    """Draw `n` times the rows of `size` trained networks, at least one of them within the limit; shape (n, size)."""
    drawn: list[np.ndarray] = []
    while len(drawn) < n:
        ten = rng.choice(len(of.networks), size, replace=False)
        drawn += [ten] if of.allowed[ten].any() else []
    return np.array(drawn).reshape(n, size)


def _regression(learner: Any) -> Callable[[Known, np.ndarray, int], int]:
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
WAYS: dict[str, Callable[[Known, np.ndarray, int], int]] = {
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


def choices(of: Known, tens: np.ndarray, ways: Mapping[str, Callable[[Known, np.ndarray, int], int]] = WAYS) -> pd.DataFrame:
    """Return the row that each way chooses from each ten; one row per ten, one column per way."""
    return pd.DataFrame([_chosen(of, ten, seed, ways) for seed, ten in enumerate(tens)])


def _chosen(of: Known, ten: np.ndarray, seed: int, ways: Mapping[str, Callable[[Known, np.ndarray, int], int]] = WAYS) -> dict[str, int]:
    return {name: int(way(of, ten, seed)) for name, way in ways.items()}


def recorded_choices(of: Known, tens: np.ndarray, results: Path = RESULTS) -> pd.DataFrame:
    """Return what `choices` does, as `record_choices` has kept it; ValueError where it did not, or for other networks or tens."""
    rows = _choices_table(of, results).rows()
    found = {tuple(row["rows"]): row["chosen"] for row in rows if row["limit"] == of.limit}
    if missing := [number for number, ten in enumerate(tens) if tuple(ten.tolist()) not in found]:
        raise ValueError(f"{results}: no choices from ten {missing[0]} of {len(tens)}; llmpp digits makes them{repository.HINT}")
    return pd.DataFrame([found[tuple(ten.tolist())] for ten in tens])


def record_choices(of: Known, tens: np.ndarray, results: Path = RESULTS, seconds: float = math.inf, progress: bool = False) -> bool:
    """Let every way choose from each ten, keep what it chooses, go on where that was stopped, and return whether all is there."""
    stop = time.monotonic() + seconds

    def work(ten: np.ndarray, seed: int) -> dict[str, Any] | None:
        return {"chosen": _chosen(of, ten, seed)} if time.monotonic() < stop else None

    jobs = [({"limit": of.limit, "rows": ten.tolist()}, (ten, number)) for number, ten in enumerate(tens)]
    return len(_choices_table(of, results).run(work, jobs, progress="choices" if progress else None)) == len(tens)


def _choices_table(of: Known, results: Path) -> Table:
    seen = hashlib.sha256(np.round([of.seen, of.short, of.parameters], 4).tobytes()).hexdigest()
    return Table(results / "choices.jsonl", {"scores_sha256": seen, "ways": list(WAYS), "search": [LABELS, ITERATIONS, SHORT_ITERATIONS, SIZES]})


def regrets(
    of: Known, chosen: pd.DataFrame, rng: np.random.Generator, than: str = "best of the ten", resamples: int = 2000
) -> pd.DataFrame:
    """Return how far each way falls short of the best known network within the limit, in percentage points of accuracy.

    Parameters
    ----------
    of : Known
    chosen : pandas.DataFrame
        As `choices` returns it.
    rng : numpy.random.Generator
        Resamples the tens, the same for all ways.
    than : str
        The way that the others are compared with.
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    pandas.DataFrame
        One row per way: its mean "regret", and "difference" to that of `than`, both an `Interval`, and "better networks", the share, in
        percent, of those within the limit that are better than its choice, mean over the tens. Intervals are about the tens; the table is
        the same for all.

    Notes
    -----
    The best known network is the best by the mean of two seeds, and so a little lucky: all regrets are too large by the same amount, which
    `ceiling` estimates. Differences do not have this bias.
    """
    top = np.sort(of.held_out[of.allowed])
    reached = of.held_out[chosen.to_numpy()]
    lost = top[-1] - reached
    drawn = rng.multinomial(len(lost), np.full(len(lost), 1 / len(lost)), size=resamples) / len(lost)

    def intervals(values: np.ndarray) -> list[Interval]:
        ends = np.quantile(drawn @ values, [0.025, 0.975], axis=0)
        return [Interval(*map(float, three)) for three in zip(values.mean(axis=0), *ends, strict=True)]

    better = 100 * (len(top) - np.searchsorted(top, reached, side="right")) / len(top)
    differences = lost - lost[:, [chosen.columns.get_loc(than)]]
    columns = {"regret": intervals(lost), "difference": intervals(differences), "better networks": better.mean(axis=0)}
    return pd.DataFrame(columns, index=chosen.columns)


def ceiling(frame: pd.DataFrame, rng: np.random.Generator, share: float = 0.5) -> dict[str, float]:
    """Return what the noise of trainings allows at best.

    Returns
    -------
    dict of str to float
        "noise", "spread", "tau between seeds": as in `llmpp_core.metrics.SeedNoise`; "tau of short trainings": with the held-out seeds;
        "best known": its accuracy; "regret of one seed", "regret of short trainings": of the best by these of all within the limit; "luck":
        by how much the best by two seeds is worse in the third, mean over the three, an estimate of what is too much in all regrets.
    """
    of, seeds = known(frame, share), frame.filter(regex=r"^seed ").to_numpy()
    noise = seed_noise(seeds, rng, 100)
    luck = []
    for pair in combinations(range(seeds.shape[1]), 2):
        mean, (third,) = seeds[:, pair].mean(axis=1), set(range(seeds.shape[1])) - set(pair)
        luck.append(mean[of.best(mean)] - seeds[of.best(mean), third])
    top = of.held_out[of.allowed].max()
    return {
        "noise": noise.noise,
        "spread": noise.spread,
        "tau between seeds": noise.tau_between_seeds,
        "tau of short trainings": kendall_tau(of.held_out, of.short),
        "best known": float(top),
        "regret of one seed": float(top - of.held_out[of.best(of.seen)]),
        "regret of short trainings": float(top - of.held_out[of.best(of.short)]),
        "luck": float(np.mean(luck)),
    }
