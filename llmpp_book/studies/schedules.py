"""Ways of searching compared on one task: cost, and quality by the two measures named beforehand, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmpp_book.studies import ground_truth as benchmark
from llmpp_book.studies.decide import MEASURES, needed, verdict
from llmpp_book.studies.search_tables import OFFLINE, RESULTS, by_schedule, compared, found, middle_limit, searches, share
from llmpp_core.metrics import Interval

#: What the table and the figures call the schedules, in their order.
LABELS = {
    "costly": "supernet alone",
    "HS-NAS": "HS-NAS, 15 + 15",
    "stopped like HS-NAS": "supernet alone, stopped at its cost",
    "local search": "local search, supernet alone",
    "verified climb": "distilled, verified climb",
    "adaptive": "adaptive switch",
    "stopped like adaptive": "supernet alone, stopped at that cost",
    "uncertain": "switch by uncertainty",
    **{f"switch {k}": f"fixed switch, {k} + {30 - k}" for k in (5, 10, 20, 25)},
    "cheap": "distilled alone",
    "reversed": "reversed, 15 + 15",
    "Bayesian": "Bayesian optimisation, supernet",
    "random": "random search, supernet",
}


def at_the_middle(task_name: str, results: Path = RESULTS, teacher: str = OFFLINE) -> dict[str, pd.DataFrame]:
    """Return the searches under the middle limit by schedule, each a frame by seed, with what two supernets say of the result.

    Columns own and second are minus the validation loss with the weights inherited from the supernet that was asked and from another
    one; absent, if nobody asked.
    """
    rows = searches(task_name, results, teacher)
    grouped = by_schedule(rows[rows["limit_ms"] == middle_limit(rows)])
    path = results / f"{task_name}.judged.jsonl"
    if path.exists():
        judged = benchmark.read(path, "searches TASK")
        said = {seed: -part.set_index("architecture")["valid_loss"] for seed, part in judged.groupby("seed")}
        for name, frame in grouped.items():
            columns = {column: frame["architecture"].map(said[seed]) for column, seed in (("own", 0), ("second", 1)) if seed in said}
            grouped[name] = frame.assign(**columns)
    return {name: grouped[name] for name in LABELS if name in grouped}


def comparison(task_name: str, results: Path = RESULTS, teacher: str = OFFLINE) -> pd.DataFrame:
    """Compare every schedule at the middle limit with the supernet alone.

    Returns
    -------
    pandas.DataFrame
        One row per schedule, in the order of `LABELS`: seeds; evaluations by the supernet (mean); evaluation_share and time_share
        (`Interval`, over seeds); supernet_score, own and second (means; see `at_the_middle`); valid_loss and valid_bleu from scratch
        (means); and for "loss" and "bleu" the difference (`Interval`, paired, at the level corrected for the number of schedules and
        measures by Bonferroni, which is in the frame's ``attrs["comparisons"]``), and its verdict under the margin of
        `llmpp_book.studies.decide.MEASURES`.
    """
    grouped, trained = at_the_middle(task_name, results, teacher), found(task_name, results)
    means = trained.groupby("architecture", sort=False)[["valid_loss", "valid_bleu"]].mean()
    base, rows = grouped["costly"], dict[str, dict[str, Any]]()
    comparisons, level = _corrected(grouped)
    for name, frame in grouped.items():
        scored = frame.join(means, on="architecture")
        row: dict[str, Any] = {"seeds": len(frame), "evaluations": frame["supernet_evaluations"].mean()}
        row |= {f"{what}_share": share(frame, base, column) for what, column in _SHARES.items()}
        row |= {column: scored[column].mean() for column in _MEANS if column in scored}
        for measure, (column, sign, margin, _) in MEASURES.items():
            pair = None if name == "costly" else compared(frame, base, trained, column)
            interval = pair.interval(level) if pair else Interval(np.nan, np.nan, np.nan)
            few = pair is not None and pair.pairs < _FEWEST
            row |= {measure: interval, f"{measure} verdict": "undecided" if few else verdict(interval, margin, sign) if pair else ""}
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs["comparisons"] = comparisons
    return table


def _corrected(grouped: Mapping[str, pd.DataFrame]) -> tuple[int, float]:
    """Return how many comparisons with the supernet alone are made, by all measures, and the level of each (Bonferroni)."""
    comparisons = len(MEASURES) * max(len(grouped) - 1, 1)
    return comparisons, 1 - 0.05 / comparisons


# Fewer pairs of searches decide nothing, even where all found the same.
_FEWEST = 5
_SHARES: Mapping[str, str] = {"evaluation": "supernet_evaluations", "time": "seconds"}
_MEANS = ("supernet_score", "own", "second", "valid_loss", "valid_bleu")


def what_it_takes(
    task_name: str, ours: str, theirs: str, measure: str, results: Path = RESULTS, teacher: str = OFFLINE
) -> dict[str, float]:
    """Return trainings, pairs of searches and core-minutes that would decide between two schedules, by what is known now.

    At the level of `comparison`, for a difference that is not there, in four of five cases.
    """
    grouped, trained = at_the_middle(task_name, results, teacher), found(task_name, results)
    pair = compared(grouped[ours], grouped[theirs], trained, MEASURES[measure].column)
    if pair is None or pair.pairs < 2:
        raise ValueError(f"{task_name}: fewer than two pairs of searches of {ours} and {theirs} of which all was trained")
    seconds = sum(frame["seconds"].mean() for frame in (grouped[ours], grouped[theirs]))
    level = _corrected(grouped)[1]
    return needed(pair, MEASURES[measure].margin, float(trained["train_seconds"].mean()), float(seconds), level)._asdict()
