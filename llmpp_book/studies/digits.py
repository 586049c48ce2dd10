"""All networks of a small space, trained on scikit-learn's handwritten digits: the best is known, and with it the regret of every choice.

`llmpp_book.studies.digits_training` fills the tables in results/digits; these functions read them. Whoever chooses sees the first seed.
Regret is measured on the mean of the other seeds, so that no choice is rewarded for the luck of the trainings that it was made by.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.pipeline import make_union

from llmpp_book import repository
from llmpp_core.jobs.table import Table
from llmpp_core.llm.prompts import Efficiency, PromptTask
from llmpp_core.metrics import kendall_tau, seed_noise
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space
from llmpp_core.space.network import Network

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "digits"


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


def as_table(chosen: Sequence[Network]) -> pd.DataFrame:
    """Return networks as people keep them in a table: a column per choice, lists with spaces between."""
    rows = [{name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in net.items()} for net in chosen]
    return pd.DataFrame(rows)


def scores(results: Path = RESULTS) -> pd.DataFrame:
    """Read the accuracies, in percent, of all networks of which every training is done.

    Returns
    -------
    pandas.DataFrame
        One row per network, in the order of `networks`: "network" and one column per seed, "seed 0" and so on; then, of the first seed,
        "short", the accuracy after one epoch, "seconds" and "short seconds", what either training took.

    Raises
    ------
    ValueError
        If the tables are not there, or were made from something else than each other.
    """
    full, short = (_read(results / f"{name}.jsonl") for name in ("digits", "digits.proxy"))
    if full["data_sha256"].iloc[0] != short["data_sha256"].iloc[0]:
        raise ValueError(f"{results}: the two tables were made from different data")
    frame = full.pivot(index="row", columns="seed", values="accuracy").add_prefix("seed ")
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
