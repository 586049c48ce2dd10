"""Reads the tables of searches, and compares what schedules found: in score, loss or BLEU, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmpp_book import repository
from llmpp_book.studies.ground_truth import read
from llmpp_book.studies.paired import Paired, by_student, paired, training_noise
from llmpp_core.metrics import Interval
from llmpp_core.space.architecture import Architecture

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "search"
#: What the predictors are called in the rows. The first is distilled from a teacher.
CHEAP, COSTLY, PROCESS = "distilled", "supernet", "process"
#: The teachers that are no language model: the offline endpoint and a regression. Others are names of recordings of the experiment
#: TASK-distill.
OFFLINE, RIDGE = "offline", "ridge"
#: Schedules at whose cost the supernet alone is stopped, for comparison (see `stopped`).
STOPPED = ("HS-NAS", "adaptive")


def iterations(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the iterations of a search, each with its best architecture, which a table holds where it is another than before."""
    found = [dict(step) for step in steps]
    for before, step in pairwise(found):
        step.setdefault("best", before["best"])
    return found


def stopped(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the searches with the supernet alone, stopped when it had scored as many architectures as in those of another schedule.

    So what that found is compared with what the supernet alone finds at the same cost. Where both have a search of the same limit and
    seed there is a row: limit_ms, seed, best, supernet_score, evaluations of the supernet and seconds, up to the last iteration that it
    could afford.
    """
    alone = {(row["limit_ms"], row["seed"]): row for row in rows if row["schedule"] == "costly"}
    found = []
    for row in rows:
        key, allowed = (row["limit_ms"], row["seed"]), row["evaluations"].get(COSTLY, 0)
        if row["schedule"] != name or key not in alone:
            continue
        steps = iterations(alone[key]["iterations"])
        asked = np.cumsum([step["evaluations"].get(COSTLY, 0) for step in steps])
        if asked[0] > allowed:
            continue
        last = int(np.searchsorted(asked, allowed, side="right")) - 1
        seconds = round(sum(step["seconds"] for step in steps[: last + 1]), 3)
        state = {"best": steps[last]["best"], "supernet_score": steps[last]["supernet_score"]}
        found.append({"limit_ms": key[0], "seed": key[1], **state, "evaluations": int(asked[last]), "seconds": seconds})
    return found


def searches(task_name: str, results: Path = RESULTS, teacher: str = OFFLINE) -> pd.DataFrame:
    """Read the searches of a task with a teacher's cheap predictor, one row each; column architecture holds what was found.

    Column iterations is as in `iterations`.
    """
    command = "searches TASK" if teacher == OFFLINE else f"searches TASK --teacher {teacher}"
    rows = read(results / f"{task_name}{table_name(teacher)}.jsonl", command, "best")
    return rows.assign(iterations=rows["iterations"].map(iterations))


def middle_limit(searches: pd.DataFrame) -> float:
    """Return the limit, in ms, that most seeds were searched under; of several, the middle one."""
    seeds = searches.groupby("limit_ms")["seed"].nunique()
    most = sorted(seeds.index[seeds == seeds.max()])
    return float(most[len(most) // 2])


def found(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the trainings of what the searches found, as `llmpp_book.studies.ground_truth.trainings`."""
    return read(results / f"{task_name}.found.jsonl", "searches TASK")


def measured_latency(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the measured latency of what the searches found, one row per architecture, in ms of the machine of TASK.latency.jsonl.

    Tables TASK.NAME.latency.jsonl come from other machines, or from other days. Each holds some architectures of the first table, by
    which its times are scaled: by the median ratio.
    """
    from llmpp_core.latency.tables import read_latency_table

    table = read_latency_table(results / f"{task_name}.latency.jsonl").set_index("architecture")
    for path in sorted(results.glob(f"{task_name}.*.latency.jsonl")):
        more = read_latency_table(path).set_index("architecture")
        shared = more.index.intersection(table.index)
        if len(shared) < 5:
            raise ValueError(f"{path}: expected at least 5 architectures of {task_name}.latency.jsonl, to scale by, got {len(shared)}")
        pace = float((table.loc[shared, "latency_ms"] / more.loc[shared, "latency_ms"]).median())
        times = [column for column in more.columns if column.endswith("_ms")]
        table = pd.concat([table, more.drop(shared).assign(**{column: pace * more[column] for column in times})])
    return table


def uncertainty(trained: pd.DataFrame, score: str = "valid_bleu") -> float:
    """Return the standard deviation of the mean score of an architecture over its trainings: the root of the mean over architectures."""
    numbers = trained.groupby("architecture", sort=False).size()
    variances = training_noise(trained, score)["variance"].loc[[arch.decoder_layers for arch in numbers.index]]
    return float((variances.to_numpy() / numbers.to_numpy()).mean() ** 0.5)


def by_schedule(searches: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return searches under one limit by schedule, each a frame by seed, with a column supernet_evaluations.

    Those with the supernet alone, stopped at the cost of a schedule of `STOPPED`, are under "stopped like NAME".
    """
    asked = [evaluations.get(COSTLY, 0) for evaluations in searches["evaluations"]]
    groups = {str(name): part.set_index("seed") for name, part in searches.assign(supernet_evaluations=asked).groupby("schedule")}
    for name in STOPPED:
        if rows := stopped([dict(row) for _, row in searches.iterrows()], name):
            states = pd.DataFrame(rows).set_index("seed")
            archs = states["best"].map(Architecture.from_hat_dict)
            groups[f"stopped like {name}"] = states.assign(architecture=archs, supernet_evaluations=states["evaluations"])
    return groups


def compared(ours: pd.DataFrame, theirs: pd.DataFrame, trained: pd.DataFrame, score: str = "valid_bleu") -> Paired | None:
    """Return the mean difference in score between two frames of `by_schedule`, over the seeds that both have and whose results were
    trained (see `llmpp_book.studies.paired.paired`); None without any.
    """
    trained = trained.dropna(subset=[score])
    known = set(trained["architecture"])
    seeds = [
        seed for seed in ours.index.intersection(theirs.index) if {ours.at[seed, "architecture"], theirs.at[seed, "architecture"]} <= known
    ]
    return paired(list(ours.loc[seeds, "architecture"]), list(theirs.loc[seeds, "architecture"]), trained, score) if seeds else None


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, trained: pd.DataFrame, score: str = "valid_bleu", level: float = 0.95) -> Interval:
    """Return the mean difference of `compared` with its interval; nan where there is none."""
    found = compared(ours, theirs, trained, score)
    return found.interval(level) if found else Interval(np.nan, np.nan, np.nan)


def share(ours: pd.DataFrame, theirs: pd.DataFrame, column: str) -> Interval:
    """Return the ratio of the sums of a column over the seeds that both frames of `by_schedule` have, with its interval over seeds."""
    seeds = ours.index.intersection(theirs.index)
    pair = [frame.loc[seeds, column].to_numpy(dtype=float) for frame in (ours, theirs)]
    ratio = float(pair[0].sum() / pair[1].sum())
    if len(seeds) < 3:
        return Interval(ratio, np.nan, np.nan)
    left = by_student(pair[0], ratio * pair[1])
    half = float((left.high - left.value) / pair[1].mean())
    return Interval(ratio, ratio - half, ratio + half)


def table_name(teacher: str) -> str:
    """Return what a teacher adds to the name of a task's table of searches."""
    return "" if teacher == OFFLINE else f".{teacher}"
