"""Searches of this project's own: schedules compared at equal limits and seeds, and what they find trained from scratch.

`measure` fills results/search/TASK.jsonl, a row per search, and TASK.found.jsonl, a row per training, and `measure_latency`
TASK.latency.jsonl; both go on where they were stopped. `searches`, `found` and `llmpp_core.latency_tables.read_latency_table` read them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from llmpp_core import benchmark
from llmpp_core.benchmark import prepare, provenance, supernet_path, train_from_scratch
from llmpp_core.checkpoints import load_network, space_record
from llmpp_core.constraints import Limit
from llmpp_core.distill import DistilledPredictor, distill
from llmpp_core.files import need_writable, read_rows
from llmpp_core.inputs import as_list
from llmpp_core.jobs import here, run_jobs
from llmpp_core.latency import LatencyPredictor
from llmpp_core.latency_tables import extend_latency_table, read_latency_table
from llmpp_core.llm import Client
from llmpp_core.llm_predictor import LLMPredictor
from llmpp_core.offline_llm import OfflineEndpoint, offline_settings
from llmpp_core.peers import RandomSearch
from llmpp_core.profiler import LatencySettings
from llmpp_core.schedule import predictors_of, schedule
from llmpp_core.search import EvolutionarySearch, Search
from llmpp_core.sources import SUPERNETS
from llmpp_core.space import Architecture
from llmpp_core.supernet_predictor import SupernetPredictor
from llmpp_core.tasks import Task, load_task

#: Where the tables are, in a checkout of this project.
RESULTS = Path(__file__).resolve().parents[1] / "results" / "search"
#: What the two predictors are called in the rows. The first is distilled from the offline endpoint until a language model is recorded.
CHEAP, COSTLY = "distilled", "supernet"
#: The schedules compared, by the names of `llmpp_core.schedule.schedule`, and random search with the supernet.
SCHEDULES = ("costly", "HS-NAS", "adaptive", "cheap", "random", "switch 25", "reversed")
#: Schedules at whose cost the supernet alone is stopped, for comparison (see `stopped`).
STOPPED = ("HS-NAS", "adaptive")
#: Switch iterations beside 0 ("costly"), 15 ("HS-NAS"), 25 and 30 ("cheap").
SWITCHES = ("switch 5", "switch 10", "switch 20")
#: Quantiles of the latency of random architectures that are the limits; the middle one is searched with most seeds.
LIMITS = (0.25, 0.5, 0.75)
_LABELS = 2000
# Validation pairs on which the supernet scores candidates: what makes some fifty searches affordable on a CPU.
SENTENCES = 200


def plan(seeds: int = 5, others: int = 2) -> list[tuple[str, float, int]]:
    """Return (schedule, quantile of the limit, seed) of every search.

    All schedules but the reversed one have all `seeds` at the middle limit. It, the outer limits, where only the first four are
    searched with, and other switch iterations have `others`.
    """
    main = [(name, LIMITS[1], seed) for seed in range(seeds) for name in SCHEDULES[:-1]]
    few = range(min(others, seeds))
    outer = [(name, limit, seed) for seed in few for limit in (LIMITS[0], LIMITS[2]) for name in SCHEDULES[:4]]
    return main + [(name, LIMITS[1], seed) for seed in few for name in (*SCHEDULES[-1:], *SWITCHES)] + outer


def latency_predictor(task: Task, results: Path = benchmark.RESULTS) -> LatencyPredictor:
    """Return the latency predictor fitted to the latencies measured for the task's benchmark, in ms."""
    table = read_latency_table(here(results / f"{task.name}.latency.jsonl"))
    return LatencyPredictor().fit(list(table["architecture"]), table["latency_ms"])


def limits(task: Task, latency: LatencyPredictor) -> dict[float, float]:
    """Return the limits in ms: quantiles of the predicted latency of random architectures, rounded to a tenth."""
    drawn = latency.predict(task.space.sample(2000, np.random.default_rng(0)))
    return {quantile: round(float(np.quantile(drawn, quantile)), 1) for quantile in LIMITS}


def distilled_predictor(task: Task, folder: Path, results: Path = benchmark.RESULTS) -> tuple[DistilledPredictor, Path]:
    """Return the cheap predictor and its file in `folder`, whose name tells what it was made from; it is made if it is not there.

    Its teacher sees ten architectures of the benchmark and nothing else. The teacher is the offline endpoint, which is not a
    language model, asked through the whole path that a language model would be.
    """
    records = benchmark.records(task.name, results)
    drawn = records.iloc[np.random.default_rng(0).permutation(len(records))[:10]]
    shown, bleu = list(drawn["architecture"]), drawn["bleu"].to_numpy()
    seen = [[arch.to_hat_dict() for arch in shown], bleu.tolist(), asdict(task.prompt_task()), space_record(task.space), _LABELS]
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True, default=lambda function: function.__qualname__).encode()).hexdigest()
    path = folder / f"{task.name}-distilled-{digest[:12]}.safetensors"
    if not path.exists():
        with OfflineEndpoint() as url:
            teacher = LLMPredictor(Client(offline_settings(url)), task.prompt_task(), form="json", batch_size=20).fit(shown, bleu)
            student = distill(teacher, task.space, _LABELS, np.random.default_rng(0), name="offline endpoint")
        path.parent.mkdir(parents=True, exist_ok=True)
        student.save(path)
    return DistilledPredictor.load(path), path


def search(
    given: Task | str,
    name: str,
    limit: float,
    seed: int,
    distilled: Path,
    folder: Path,
    results: Path,
    device: str,
    threads: int | None,
    stop: float,
) -> dict[str, Any] | None:
    """Run one search from the beginning, asking a supernet of its own, and return its row; None if the clock reached `stop`."""
    if time.time() > stop:
        return None
    task, pairs = prepare(given, device, threads)
    cheap = DistilledPredictor.load(here(distilled))
    supernet = load_network(here(supernet_path(folder, task.name, SUPERNETS[0], 0)), task.space, device)
    costly = SupernetPredictor(supernet, pairs["valid"].first(SENTENCES), task.supernet_recipe.label_smoothing)
    limited = Limit(latency_predictor(task, results), limit, "latency", "ms")
    run: Search
    if name == "random":
        # As many candidates as the evolutionary search scores at most: 125, then 100 in each iteration.
        run = RandomSearch(task.space, costly, limited, evaluations=125 + 29 * 100, seed=seed, names=[COSTLY])
    else:
        entries = schedule(name, cheap, costly)
        names = {id(cheap): CHEAP, id(costly): COSTLY}
        run = EvolutionarySearch(task.space, entries, limited, seed=seed, names=_names(entries, names))
    began = time.perf_counter()
    found = run.run()
    seconds = time.perf_counter() - began
    # Afterwards, so that it costs the search nothing: what the supernet says of the best of each iteration.
    bests = [record.best for record in found.records]
    said = costly.predict(bests)
    return {
        "best": found.best.to_hat_dict(),
        "score": found.score,
        "supernet_score": float(said[-1]),
        "latency_ms": found.costs["latency"],
        "evaluations": found.evaluations,
        "seconds": round(seconds, 3),
        "parts": {part: round(value, 3) for part, value in found.seconds.items()},
        "iterations": [
            {
                "predictor": record.predictor,
                "score": record.score,
                "supernet_score": round(float(score), 5),
                "evaluations": record.evaluations,
                "seconds": round(sum(record.seconds.values()), 3),
                "best": record.best.to_hat_dict(),
                "rule": record.rule,
            }
            for record, score in zip(found.records, said, strict=True)
        ],
        **provenance(device),
    }


def measure(
    given: Task | str,
    folder: Path,
    *,
    results: Path = RESULTS,
    ground_truth: Path = benchmark.RESULTS,
    seeds: int = 5,
    trainings: int = 3,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = math.inf,
    executor: Executor | None = None,
    progress: bool = False,
) -> bool:
    """Run all searches that the tables of a task lack and train what they found.

    Parameters
    ----------
    given : Task or str
        A task with a benchmark, or its name.
    folder : path
        Where the benchmark keeps its checkpoints.
    results, ground_truth : path
        Where the tables of searches and of the benchmark are.
    seeds : int
        Searches per schedule at the middle limit.
    trainings : int
        Trainings of each architecture found.
    device, threads, seconds, executor, progress
        As for `llmpp_core.benchmark.measure`.

    Returns
    -------
    bool
        Whether the tables are complete.
    """
    from llmpp_core.cluster import on_cluster, sent

    task = load_task(given) if isinstance(given, str) else given
    stop = time.time() + seconds
    data_sha256 = benchmark.task_digest(task)
    supernet = _trained_supernet(task, folder, ground_truth, data_sha256)
    allowed = limits(task, latency_predictor(task, ground_truth))
    _refuse_other_limits(results / f"{task.name}.jsonl", allowed)
    need_writable(results / f"{task.name}.jsonl")
    keep = not on_cluster(executor)
    # Made here once, so that the jobs find it.
    distilled = distilled_predictor(task, folder, ground_truth)[1]
    read = [distilled, supernet, ground_truth / f"{task.name}.latency.jsonl"]
    complete: list[bool] = []

    def label(row: dict[str, Any]) -> None:
        row["data_sha256"] = data_sha256

    def run(
        work: Callable[..., Any], jobs: Sequence[Any], table: str, recipe: Mapping[str, Any], written: Any = None
    ) -> list[dict[str, Any]]:
        path, title = results / f"{task.name}{table}.jsonl", f"{task.name} {table or 'searches'}" if progress else None
        benchmark.refuse_others(path, data_sha256, recipe)
        rows = run_jobs(work, jobs, path, executor=executor, progress=title, receive=label, written=written)
        complete.append(len(rows) == len(jobs))
        return rows

    common = (distilled, folder, ground_truth, device, threads, stop)
    with sent(executor, given, task, read) as passed:
        jobs = [
            ({"schedule": name, "limit_ms": allowed[limit], "seed": seed}, (passed, name, allowed[limit], seed, *common))
            for name, limit, seed in plan(seeds)
        ]
        rows = run(search, jobs, "", {})
        ended = [row["best"] for row in rows] + [row["best"] for name in STOPPED for row in stopped(rows, name)]
        best = list(dict.fromkeys(map(Architecture.from_hat_dict, ended)))
        trained = [
            ({"arch": arch.to_hat_dict(), "seed": seed}, (passed, arch, seed, folder, device, threads, stop, keep))
            for seed in range(trainings)
            for arch in best
        ]
        run(train_from_scratch, trained, ".found", asdict(task.recipe), partial(benchmark.forget, folder, task.name) if keep else None)
    return all(complete)


def _trained_supernet(task: Task, folder: Path, ground_truth: Path, data_sha256: str) -> Path:
    """Return the checkpoint of the supernet that scores candidates; ValueError if there is none that was trained to the end."""
    table, path, name = ground_truth / f"{task.name}.supernets.jsonl", supernet_path(folder, task.name, SUPERNETS[0], 0), SUPERNETS[0]
    benchmark.refuse_others(table, data_sha256, asdict(task.supernet_recipe))
    row = next((row for row in read_rows(table) if (row["supernet"], row["seed"]) == (name, 0)), None)
    if row is None:
        raise ValueError(f"{table} has no {name}, seed 0; measure the benchmark first: python -m llmpp_core benchmark {task.name}")
    if row["diverged"] is not None:
        raise ValueError(f"{table}: the training of {name}, seed 0, which is to score candidates, was given up: {row['diverged']}")
    if not path.exists():
        raise ValueError(f"{path} is gone; remove the row of {name}, seed 0, from {table.name} and measure the benchmark to train it again")
    return path


def _refuse_other_limits(path: Path, allowed: Mapping[float, float]) -> None:
    there = {row["limit_ms"] for row in read_rows(path)}
    if there - set(allowed.values()):
        had, now = (", ".join(f"{limit:g}" for limit in sorted(values)) for values in (there, allowed.values()))
        raise ValueError(f"{path}: searched under limits of {had} ms; by the latency table of today they are {now}; move the file away")


def measure_latency(
    given: Task | str, *, results: Path = RESULTS, repeats: int = 7, device: str = "cpu", seconds: float = math.inf, progress: bool = False
) -> bool:
    """Measure how long what was trained takes, on a machine that does nothing else, and go on where it was stopped.

    Returns whether the table is complete.
    """
    task = load_task(given) if isinstance(given, str) else given
    archs = list(dict.fromkeys(found(task.name, results)["architecture"]))
    settings, path = LatencySettings(len(task.vocabulary), device=device), results / f"{task.name}.latency.jsonl"
    rng = np.random.default_rng(0)
    return extend_latency_table(archs, task.space, settings, path, rng, repeats=repeats, seconds=seconds, progress=progress)


def stopped(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the searches with the supernet alone as they were when it had scored as many architectures as in those of another schedule.

    Parameters
    ----------
    rows : sequence of mapping
        Searches.
    name : str
        The other schedule. What it found is compared with what the supernet alone finds at the same cost.

    Returns
    -------
    list of dict
        For each search of the other schedule that one with the supernet alone has the limit and seed of: limit_ms, seed, best,
        supernet_score, evaluations of the supernet and seconds, up to the last iteration that it could afford.
    """
    alone = {(row["limit_ms"], row["seed"]): row for row in rows if row["schedule"] == "costly"}
    found = []
    for row in rows:
        key, allowed = (row["limit_ms"], row["seed"]), row["evaluations"].get(COSTLY, 0)
        if row["schedule"] != name or key not in alone:
            continue
        steps = alone[key]["iterations"]
        asked = np.cumsum([step["evaluations"].get(COSTLY, 0) for step in steps])
        if asked[0] > allowed:
            continue
        last = int(np.searchsorted(asked, allowed, side="right")) - 1
        seconds = round(sum(step["seconds"] for step in steps[: last + 1]), 3)
        state = {"best": steps[last]["best"], "supernet_score": steps[last]["supernet_score"]}
        found.append({"limit_ms": key[0], "seed": key[1], **state, "evaluations": int(asked[last]), "seconds": seconds})
    return found


def searches(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the searches of a task, one row each; column architecture holds what was found."""
    return _table(results / f"{task_name}.jsonl", "best")


def found(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the trainings of what the searches found, as `llmpp_core.benchmark.trainings`."""
    return _table(results / f"{task_name}.found.jsonl", "arch")


def uncertainty(trained: pd.DataFrame, score: str = "valid_bleu") -> float:
    """Return the standard deviation of the mean score of an architecture over its trainings, pooled over architectures."""
    scores = trained.groupby("architecture", sort=False)[score]
    return float((scores.var(ddof=1).mean() / scores.size().min()) ** 0.5)


def paired_difference(
    ours: Sequence[Architecture],
    theirs: Sequence[Architecture],
    trained: pd.DataFrame,
    score: str = "valid_bleu",
    groups: Sequence[Any] | None = None,
) -> tuple[float, float, float]:
    """Return the mean difference in score between what pairs of searches found, and its 95 % interval.

    Two things make it uncertain: other seeds would have found something else, and other trainings would have scored otherwise, the
    same for all searches that found the same architecture. The second is known from repeated trainings; of the variance over pairs,
    what it does not explain is counted as the first.

    Parameters
    ----------
    ours, theirs : sequence of Architecture
        What the searches found, in pairs, such as those of equal limits and seeds.
    trained : pandas.DataFrame
        Trainings of all of these, as `found` returns them.
    score : str
        Column of `trained`.
    groups : sequence, optional
        Such as the limit of each pair: the result is the mean over groups of the means over their pairs.

    Returns
    -------
    tuple of float
        Mean and both ends of the interval, of Student's t with the degrees of freedom of Welch and Satterthwaite, in units of the score.
    """
    ours, theirs = as_list(ours, "ours"), as_list(theirs, "theirs")
    groups = [0] * len(ours) if groups is None else list(groups)
    if not len(ours) == len(theirs) == len(groups) > 0:
        raise ValueError(f"expected pairs of architectures, got {len(ours)} and {len(theirs)}, and a group of each, got {len(groups)}")
    means = trained.groupby("architecture", sort=False)[score].mean()
    numbers = {arch: i for i, arch in enumerate(means.index)}
    # signs[pair, architecture]
    signs = np.zeros((len(ours), len(means)))
    for row, first, second in zip(signs, ours, theirs, strict=True):
        row[numbers[first]] += 1
        row[numbers[second]] -= 1
    difference, noise = signs @ means.to_numpy(), uncertainty(trained, score) ** 2
    members = [np.flatnonzero([group == name for group in groups]) for name in dict.fromkeys(groups)]
    weights = np.zeros(len(ours))
    parts = [(0.0, float(len(trained) - len(means)))]
    for rows in members:
        weights[rows] = 1 / (len(members) * len(rows))
        if len(rows) > 1:
            centred = signs[rows] - signs[rows].mean(axis=0)
            excess = difference[rows].var(ddof=1) - noise * (centred**2).sum() / (len(rows) - 1)
            parts.append((max(0.0, excess) / (len(members) ** 2 * len(rows)), len(rows) - 1))
    parts[0] = (noise * ((weights @ signs) ** 2).sum(), parts[0][1])
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / n for part, n in parts) if variance else 1.0
    mean, half = float(weights @ difference), float(student.ppf(0.975, freedom) * variance**0.5)
    return mean, mean - half, mean + half


def _table(path: Path, column: str) -> pd.DataFrame:
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} is not there or empty; measure it with: python -m llmpp_core searches TASK")
    return pd.DataFrame([{**row, "architecture": Architecture.from_hat_dict(row[column])} for row in rows])


def _names(entries: Sequence[Any], names: dict[int, str]) -> list[str]:
    return [names[id(predictor)] for predictor in predictors_of(entries)]
