"""Decides whether two ways of searching find equally good architectures, buying what says most about it for its price.

What is bought is a further training of an architecture found, or a further pair of searches, whichever lowers the variance of the
difference most per second (see `llmpp_book.studies.paired`). To look at the result whenever something was bought, and to stop when it
looks decided, would find differences where there are none; so looks are few, each when the cost has grown by a third, at a higher level.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import count as numbers
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from llmpp_book.studies import ground_truth as benchmark
from llmpp_book.studies.measurements import Study
from llmpp_book.studies.paired import Paired
from llmpp_book.studies.search_tables import OFFLINE, RESULTS, STOPPED, by_schedule, compared, found, searches
from llmpp_book.studies.searches import LIMITS, MAIN, OTHERS, Searches
from llmpp_core.jobs.table import Table
from llmpp_core.metrics import Interval
from llmpp_core.search.schedule import schedule
from llmpp_core.space.architecture import Architecture


class Measure(NamedTuple):
    """What quality is measured by: column of the trainings, which way is better, and the margin named before any data were seen."""

    column: str
    sign: int
    margin: float
    unit: str


#: By name. A margin is the difference that would matter to nobody.
MEASURES = {
    "loss": Measure("valid_loss", -1, 0.005, "nats per token"),
    "bleu": Measure("valid_bleu", 1, 0.5, "BLEU"),
}
#: Level of the interval at each look, such that at most about 5 % of comparisons without a difference end with one in up to six looks; cost
#: has by then grown to four times that of the first.
LEVEL = 0.985
#: Verdicts that end it.
DECIDED = ("equal", "better", "worse")
# First look after so many pairs, and trainings of each architecture; cost has to grow by this factor until the next.
_FIRST_PAIRS, _FIRST_TRAININGS, _GROWTH = 10, 3, 4 / 3


def verdict(interval: Interval, margin: float, sign: int = 1) -> str:
    """Say what an interval of a difference means: "equal", "better", "worse", "not worse" or "undecided".

    Parameters
    ----------
    interval : Interval
        Of ours minus theirs.
    margin : float
        What would matter to nobody, in the unit of the interval; above 0.
    sign : int
        1 where higher is better, -1 where lower is.
    """
    low, high = sorted((sign * interval.low, sign * interval.high))
    if -margin < low and high < margin:
        return "equal"
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "not worse" if low > -margin else "undecided"


class Needed(NamedTuple):
    """What it would take to decide: trainings and pairs of searches in all, and core-minutes."""

    trainings: int
    pairs: int
    minutes: float


def needed(now: Paired, margin: float, training_seconds: float, pair_seconds: float, level: float = LEVEL, power: float = 0.8) -> Needed:
    """Return what it takes, at the least cost, to show that a difference that is not there is within a margin.

    Trainings are allotted by what they add to the variance (Neyman, 1934): to each architecture in proportion to its weight and noise.
    """
    # The half width and the chance that the estimate strays from 0, on both sides.
    target = (margin / (norm.ppf((1 + level) / 2) + norm.ppf((1 + power) / 2))) ** 2
    noise = float((now.weights["weight"].abs() * now.weights["variance"] ** 0.5).sum()) ** 2
    seeds = now.seeds * now.pairs
    common = (noise * training_seconds) ** 0.5 + (seeds * pair_seconds) ** 0.5
    trainings = (noise / training_seconds) ** 0.5 * common / target
    pairs = (seeds / pair_seconds) ** 0.5 * common / target
    counts = math.ceil(max(trainings, len(now.weights))), math.ceil(max(pairs, 2))
    return Needed(*counts, (counts[0] * training_seconds + counts[1] * pair_seconds) / 60)


class State(NamedTuple):
    """What is known of a comparison, and what it and the next purchases cost, in seconds of a core."""

    now: Paired | None
    pairs: int
    cost: float
    training_seconds: float
    pair_seconds: float
    counts: Mapping[Architecture, int]
    #: The first seed that a schedule was not searched with.
    next_seed: int = 0


def state(task_name: str, ours: str, theirs: str, column: str, results: Path, teacher: str, limit_ms: float) -> State:
    """Return what the tables say of two schedules under a limit."""
    rows = searches(task_name, results, teacher)
    rows = rows[rows["limit_ms"] == limit_ms]
    grouped = by_schedule(rows)
    a, b = (grouped.get(name, pd.DataFrame(columns=["architecture"])) for name in (ours, theirs))
    seeds = a.index.intersection(b.index)
    archs = list(dict.fromkeys([*a.loc[seeds, "architecture"], *b.loc[seeds, "architecture"]]))
    # Before the first training there is no table; one that is damaged is an error.
    nothing = pd.DataFrame(columns=["architecture", "train_seconds", column])
    trained = found(task_name, results) if (results / f"{task_name}.found.jsonl").exists() else nothing
    trained = trained[trained["architecture"].isin(set(archs))]
    counts = trained.groupby("architecture", sort=False).size()
    there = [set(rows.loc[rows["schedule"] == name, "seed"]) for name in needed_schedules(ours, theirs)]
    next_seed = next(seed for seed in numbers() if any(seed not in seeds_of for seeds_of in there))
    spent = rows.assign(spent=rows.reindex(columns=["spent_seconds"])["spent_seconds"].fillna(rows["seconds"]))
    searched = spent[spent["schedule"].isin(needed_schedules(ours, theirs)) & spent["seed"].isin(seeds)]
    training_seconds = float(trained["train_seconds"].mean()) if len(trained) else math.nan
    # A further pair may find something new, which then has to be trained.
    first = max(len(seeds), 1)
    pair_seconds = searched["spent"].sum() / first + _FIRST_TRAININGS * training_seconds * len(archs) / (2 * first)
    now = compared(a.loc[seeds], b.loc[seeds], trained, column) if len(trained) else None
    cost = float(searched["spent"].sum() + trained["train_seconds"].sum())
    numbered = {arch: int(counts.get(arch, 0)) for arch in archs}
    return State(now, len(seeds), cost, training_seconds, float(pair_seconds), numbered, next_seed)


def needed_schedules(ours: str, theirs: str) -> list[str]:
    """Return the schedules to search with: one that is stopped at another's cost needs both. ValueError for one that there is not."""
    if unknown := next((side for side in (ours, theirs) if "stopped" in side and side.removeprefix("stopped like ") not in STOPPED), None):
        raise ValueError(f"{unknown!r}: the supernet alone is stopped like {' or '.join(STOPPED)}")
    names = [name for side in (ours, theirs) for name in (["costly", side.removeprefix("stopped like ")] if "stopped" in side else [side])]
    for name in set(names) - {*MAIN, *OTHERS}:
        schedule(name, None, None)
    return list(dict.fromkeys(names))


def decide(
    given: Any,
    folder: Path,
    *,
    ours: str = "HS-NAS",
    theirs: str = "costly",
    measure: str = "loss",
    margin: float | None = None,
    compared_with: int = 1,
    budget: float = 200.0,
    results: Path = RESULTS,
    ground_truth: Path = benchmark.RESULTS,
    teacher: str = OFFLINE,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    **options: Any,
) -> str:
    """Search and train until it is decided which of two ways of searching is better, and return the verdict.

    It goes on where it was stopped: what was bought is in the tables of searches and trainings, looks are in TASK.decisions.jsonl.

    Parameters
    ----------
    ours, theirs : str
        Schedules of `llmpp_book.studies.searches`, or "stopped like NAME".
    measure : str
        "loss" or "bleu".
    margin : float, optional
        What would matter to nobody; that of `MEASURES` by default.
    compared_with : int
        How many comparisons are made in all: the level of each is corrected for their number (Bonferroni).
    budget : float
        Core-minutes in all, what the tables hold already included. Ten pairs and three trainings of what they found are made whatever they
        cost, since nothing can be said before.
    jobs : int
        How many purchases are made at a time.
    given, folder, results, ground_truth, teacher, **options
        As for `llmpp_book.studies.searches.measure`.

    Raises
    ------
    ValueError
        For a margin that is not positive, an unknown measure or schedule, or a budget that is too small for one training.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: expected {' or '.join(MEASURES)}, got {measure!r}")
    column, sign, usual, unit = MEASURES[measure]
    margin = usual if margin is None else margin
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin: expected a positive number of {unit}, got {margin!r}")
    wanted = needed_schedules(ours, theirs)
    study = Study(given, folder, results, **options)
    name = study.task.name
    once = float(benchmark.trainings(name, ground_truth)["train_seconds"].mean())
    if not budget * 60 >= once:
        raise ValueError(f"budget: {budget:g} core-minutes are too few for one training, which takes {once / 60:.1f}")
    plan = Searches(study, ground_truth, teacher)
    question = {"ours": ours, "theirs": theirs, "teacher": teacher, "measure": measure, "margin": margin, "compared_with": compared_with}
    looks, level = Table(results / f"{name}.decisions.jsonl"), 1 - (1 - LEVEL) / compared_with

    def earlier() -> list[dict[str, Any]]:
        return [row for row in looks.rows() if all(row.get(key) == value for key, value in question.items())]

    def known() -> State:
        return state(name, ours, theirs, column, results, teacher, plan.limits[LIMITS[1]])

    if (last := earlier()) and last[-1]["verdict"] in DECIDED:
        say(_line(ours, theirs, unit, last[-1]))
        return str(last[-1]["verdict"])
    stop = time.time() + study.seconds
    if not plan.search([(one, LIMITS[1], seed) for seed in range(_FIRST_PAIRS) for one in wanted]):
        return "time is up"
    while True:
        here = known()
        lacking = {arch: _FIRST_TRAININGS for arch, number in here.counts.items() if number < _FIRST_TRAININGS}
        if lacking:
            if not study.train_each(".found", lacking):
                return "time is up"
            continue
        if here.now is None:
            raise ValueError(f"{name}: no pairs of searches of {ours} and {theirs} of which all was trained")
        last, over = earlier(), here.cost / 60 >= budget
        count = needed(here.now, margin, here.training_seconds, here.pair_seconds, level)
        if not last or here.cost >= _GROWTH * last[-1]["seconds"]:
            interval = here.now.interval(level)
            found_out = verdict(interval, margin, sign)
            look = {**question, "look": len(last) + 1, "level": level, "difference": interval.value, "low": interval.low}
            look |= {"high": interval.high, "verdict": found_out, "pairs": here.pairs, "trainings": sum(here.counts.values())}
            look |= {"seconds": round(here.cost, 3), "needed": count._asdict()}
            last += looks.append([look])
            say(_line(ours, theirs, unit, look))
            if found_out in DECIDED:
                return found_out
        if over:
            # Without a look that is not due, since each adds to the chance of an error.
            say(f"the budget is spent; it would take about {count.trainings} trainings and {count.pairs} pairs, {count.minutes:.0f} min")
            return str(last[-1]["verdict"])
        bought = purchases(here, jobs)
        further = [(one, LIMITS[1], here.next_seed) for one in wanted]
        done = study.train_each(".found", bought) if bought else plan.search(further)
        if not done or time.time() > stop:
            return "time is up"


def _line(ours: str, theirs: str, unit: str, look: Mapping[str, Any]) -> str:
    """Say in one line what was seen."""
    ends = f"[{look['low']:+.4g}, {look['high']:+.4g}] {unit}"
    bought = f"{look['pairs']} pairs, {look['trainings']} trainings, {look['seconds'] / 60:.0f} core-minutes"
    return f"{ours} - {theirs}: {look['difference']:+.4g} {ends}, {look['verdict']}; {bought}"


def purchases(here: State, jobs: int = 1) -> dict[Architecture, int]:
    """Return how many trainings in all some architectures should have; empty if a further pair of searches says more for its price."""
    assert here.now is not None
    weights = here.now.weights
    pair = here.now.seeds / (here.pairs + 1) / here.pair_seconds
    numbers, noise = weights["number"].to_numpy(dtype=float), weights["weight"].to_numpy() ** 2 * weights["variance"].to_numpy()
    bought: dict[Architecture, int] = {}
    for _ in range(jobs):
        gains = noise / (numbers * (numbers + 1)) / here.training_seconds
        best = int(np.argmax(gains))
        if gains[best] <= pair:
            break
        numbers[best] += 1
        # A training that diverged has no score and no weight, but a seed.
        arch = weights.index[best]
        bought[arch] = bought.get(arch, here.counts[arch]) + 1
    return bought
