"""The benchmark, the searches and the latencies behind the records, in small and on the device at hand; chapters 8 to 10 show them.

The jobs are those that made the records, so the tables are read by the same functions and compared row by row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from llmpp_book import repository
from llmpp_book.studies import ground_truth, measurements, search_tables, searches
from llmpp_book.studies.paired import by_student
from llmpp_core.jobs.files import read_rows
from llmpp_core.latency.profiler import device_name
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.metrics import Interval, kendall_tau
from llmpp_core.predictors.baselines import baselines
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.space.architecture import Architecture
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.upstream import SUPERNETS

#: Schedules that are searched with, the first of which the others are compared with.
SCHEDULES = ("costly", "HS-NAS")
#: The teacher of the cheap predictor: no language model, since none may be at hand.
TEACHER = "depth + parameters, ridge"


@dataclass(frozen=True)
class Size:
    """How much is trained, searched and measured."""

    #: Updates of every training as a share of the task's recipes.
    updates: float
    #: Architectures of the benchmark, ten at least; trainings of each and of what is found; rounds of latency.
    architectures: int
    trainings: int
    rounds: int
    #: Searches per schedule, and iterations of each.
    seeds: int
    iterations: int


#: Some ten minutes of one processor core, more for a GPU, and all that the records have of these schedules.
SIZES = {"tiny": Size(0.25, 10, 2, 2, 3, 4), "small": Size(0.5, 12, 2, 3, 3, 10), "whole": Size(1.0, 48, 3, 7, 5, 30)}


def chosen_device(device: str) -> str:
    """Return "cuda" for "auto" where there is a GPU and "cpu" where there is none; ValueError for a device that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device_name(device)
    return device


class Live:
    """What was measured live; made once in a folder below ``_build/live``, where an interrupted run goes on and every chapter finds it.

    Parameters
    ----------
    task : str or Task
        A task, by its name where it is registered.
    size : str
        One of `SIZES`.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    folder : path, optional
        Where the tables of all sizes and devices are.

    Raises
    ------
    ValueError
        If there is no such task, size or device.
    """

    def __init__(self, task: str | Task, size: str, device: str = "auto", folder: Path = repository.ROOT / "_build" / "live"):
        if size not in SIZES:
            raise ValueError(f"size: expected {', '.join(SIZES)}, got {size!r}")
        self.device, self.size, self.name = chosen_device(device), SIZES[size], size
        whole = load_task(task) if isinstance(task, str) else task
        cut = {kind: getattr(whole, kind) for kind in ("recipe", "supernet_recipe")}
        cut = {kind: replace(recipe, updates=max(1, round(self.size.updates * recipe.updates))) for kind, recipe in cut.items()}
        self.task = whole if self.size.updates == 1 else replace(whole, **cut)
        machine = re.sub(r"\W+", "-", device_name(self.device))
        self.folder = folder / f"{self.task.name}-{size}-{machine}"
        self.benchmark, self.searched = self.folder / "tfs", self.folder / "search"

    def _study(self, results: Path) -> measurements.Study:
        return measurements.Study(self.task, self.folder, results, device=self.device)

    def _alone(self) -> FileLock:
        """Let only one chapter measure at a time; the others then find what it measured."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def measure(self) -> pd.DataFrame:
        """Train a supernet and the architectures, and ask it about them; returns `ranking` of the live tables."""
        with self._alone():
            study = self._study(self.benchmark)
            archs = measurements.architectures(self.task, self.size.architectures)
            study.train("", archs, self.size.trainings)
            net = measurements.SupernetTraining(supernet=SUPERNETS[0], **study.place)
            for row in study.run(study.table(".supernets", self.task.supernet_recipe), [net]):
                if row["diverged"] is not None:
                    raise ValueError(f"size {self.name}: the supernet's training was given up: {row['diverged']}; choose a larger size")
            asked = [measurements.Inheritance(supernet=SUPERNETS[0], arch=arch, **study.place) for arch in archs]
            study.run(study.table(".inherited"), asked)
        return ranking(self.task.name, self.benchmark)

    def measure_latency(self) -> pd.DataFrame:
        """Measure the latency of the architectures; returns the table."""
        with self._alone():
            archs = measurements.architectures(self.task, self.size.architectures)
            self._time(archs, self.benchmark)
        return read_latency_table(self.benchmark / f"{self.task.name}.latency.jsonl")

    def search(self) -> pd.DataFrame:
        """Search under the middle limit, with what `measure` and `measure_latency` made; train and time what was found.

        Returns `schedules` of the live tables.
        """
        self.measure(), self.measure_latency()
        with self._alone():
            study, latency = self._study(self.searched), searches.latency_predictor(self.task.name, self.benchmark)
            limit = searches.limits(self.task, latency)[searches.LIMITS[1]]
            common = {"distilled": self._cheap(), "latency": latency, "limit_ms": limit, "iterations": self.size.iterations, **study.place}
            jobs = [searches.SearchJob(schedule=name, seed=seed, **common) for seed in range(self.size.seeds) for name in SCHEDULES]
            rows = study.run(study.table(""), jobs)
            archs = list(dict.fromkeys(Architecture.from_hat_dict(row["best"]) for row in rows))
            study.train(".found", archs, self.size.trainings)
            self._time(archs, self.searched)
        return schedules(self.task.name, self.searched)

    def _cheap(self) -> Path:
        """Return the file of the cheap predictor: distilled from a ridge regression on depth and parameters of ten architectures."""
        path = self.folder / "cheap.safetensors"
        if not path.exists():
            shown = ground_truth.records(self.task.name, self.benchmark)[:10]
            teacher = baselines(self.task.space.qkv_dim)[TEACHER].fit(list(shown["architecture"]), shown["bleu"])
            archs = self.task.space.sample_balanced(2000, np.random.default_rng(0))
            DistilledPredictor(space=self.task.space).fit(archs, teacher.predict(archs), teacher=TEACHER).save(path)
        return path

    def _time(self, archs: list[Architecture], results: Path) -> None:
        path = results / f"{self.task.name}.latency.jsonl"
        measurements.time_each(self.task, archs, path, repeats=self.size.rounds, device=self.device)

    def origin(self) -> str:
        """Return in one line where the live numbers come from and how to have them made again."""
        commits = {row["commit"] for path in self.benchmark.glob("*.jsonl") for row in read_rows(path)}
        updates = f"{self.task.supernet_recipe.updates:,} updates for the supernet and {self.task.recipe.updates:,} for an architecture"
        where = self.folder.relative_to(repository.ROOT) if self.folder.is_relative_to(repository.ROOT) else self.folder
        return (
            f"{self.task.title}, size {self.name}: {updates}, on {device_name(self.device)} ({self.device}), "
            f"commit {', '.join(sorted(value[:7] for value in commits))}. Remove {where.as_posix()} to measure again."
        )


def _over_architectures(statistic: Callable[..., float], *data: np.ndarray) -> Interval:
    """Return a statistic with its percentile bootstrap; resamples in which it has no value, such as all scores equal, do not count."""
    picks = np.random.default_rng(0).integers(len(data[0]), size=(1000, len(data[0])))
    drawn = [statistic(*(values[rows] for values in data)) for rows in picks]
    return Interval(float(statistic(*data)), *(float(end) for end in np.nanquantile(drawn, [0.025, 0.975])))


def ranking(task_name: str, results: Path = ground_truth.RESULTS, n: int | None = None) -> pd.DataFrame:
    """Return what a benchmark says, of its first n architectures or all: columns value, low and high, ends of 95 % intervals.

    Rows: validation BLEU from scratch, mean over architectures; Kendall's tau between it and the supernet's loss, and the number of
    parameters. Intervals are over architectures (percentile bootstrap). A training that diverged does not count.
    """
    trained = ground_truth.trainings(task_name, results).dropna(subset=["valid_bleu"])
    means = trained.groupby("architecture", sort=False)[["valid_bleu", "parameters"]].mean()
    asked = ground_truth.supernet_scores(task_name, results).query("supernet == @SUPERNETS[0] and seed == 0")
    scores = asked.set_index("architecture")["valid_loss"]
    first = measurements.architectures(load_task(task_name), n) if n else means.index
    bleu, parameters, loss = means.join(scores, how="inner").reindex(first).dropna().to_numpy().T
    rows: dict[str, tuple[Any, Any]] = {
        "validation BLEU": (np.mean, (bleu,)),
        "tau, supernet's loss": (kendall_tau, (bleu, -loss)),
        "tau, parameters": (kendall_tau, (bleu, parameters)),
    }
    found = {name: _over_architectures(statistic, *data) for name, (statistic, data) in rows.items()}
    return pd.DataFrame(found, index=Interval._fields).T


def schedules(task_name: str, results: Path = search_tables.RESULTS) -> pd.DataFrame:
    """Return how HS-NAS differs from the supernet alone in searches under the middle limit: columns value, low and high, 95 % intervals.

    Rows: the share of search time and of the supernet's evaluations, over search seeds; differences in the supernet's score and in
    validation BLEU and loss of what is found, trained from scratch.
    """
    frame, trained = search_tables.searches(task_name, results), search_tables.found(task_name, results)
    grouped = search_tables.by_schedule(frame[frame["limit_ms"] == search_tables.middle_limit(frame)])
    ours, theirs = grouped[SCHEDULES[1]], grouped[SCHEDULES[0]]
    shares = {"time": "seconds", "evaluations": "supernet_evaluations"}
    found = {f"share of {name}": search_tables.share(ours, theirs, column) for name, column in shares.items()}
    found["supernet's score"] = by_student((ours["supernet_score"] - theirs["supernet_score"]).dropna(), 0.0)
    for name, column in {"BLEU": "valid_bleu", "loss (nats)": "valid_loss"}.items():
        found[name] = search_tables.difference(ours, theirs, trained, column)
    return pd.DataFrame(found, index=Interval._fields).T


def found_latency(task: Task, benchmark: Path = ground_truth.RESULTS, results: Path = search_tables.RESULTS) -> pd.DataFrame:
    """Return by how many percent the measured latency of what searches found exceeds the predicted: columns value, low and high.

    Rows: the mean and the median of the absolute value, with 95 % intervals over architectures (percentile bootstrap).
    """
    measured = read_latency_table(results / f"{task.name}.latency.jsonl").set_index("architecture")["latency_ms"]
    off = 100 * (measured.to_numpy() / searches.latency_predictor(task.name, benchmark).predict(list(measured.index)) - 1)
    found = {
        "mean excess (%)": _over_architectures(np.mean, off),
        "median error (%)": _over_architectures(np.median, np.abs(off)),
    }
    return pd.DataFrame(found, index=Interval._fields).T


def side_by_side(live: pd.DataFrame, recorded: Callable[[], pd.DataFrame], decimals: int = 2) -> pd.DataFrame:
    """Return both as text, a value with its interval in a cell; a dash where nothing is recorded."""
    try:
        record = recorded()
    except ValueError:
        record = pd.DataFrame()
    frames = {"live": live, "recorded": record}
    return pd.DataFrame({name: {row: _written(frame, row, decimals) for row in live.index} for name, frame in frames.items()})


def _written(frame: pd.DataFrame, row: str, decimals: int) -> str:
    if row not in frame.index:
        return "–"
    return f"{Interval(*frame.loc[row]):.{decimals}f}"
