"""Searches of this project's own: schedules compared at equal limits and seeds, and what they find trained from scratch.

`measure` fills results/search/TASK.jsonl, a row per search (TASK.RECORDING.jsonl where a language model's recorded answers taught the
cheap predictor), and TASK.found.jsonl, a row per training, and `measure_latency` TASK.latency.jsonl; both go on where they were
stopped. `llmpp_book.studies.search_tables` and `llmpp_core.latency.tables.read_latency_table` read them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_book.studies import ground_truth as benchmark
from llmpp_book.studies.answers import answers, recordings
from llmpp_book.studies.measurements import Job, Study, trained_supernet
from llmpp_book.studies.search_tables import CHEAP, COSTLY, OFFLINE, RESULTS, STOPPED, found, stopped, table_name
from llmpp_core.jobs.files import need_writable
from llmpp_core.latency.predictor import LatencyPredictor
from llmpp_core.latency.profiler import extend_latency_table
from llmpp_core.latency.tables import LatencySettings, read_latency_table
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.nets.checkpoints import load_network, space_record
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.search.alternatives import RandomSearch
from llmpp_core.search.evolution import EvolutionarySearch, Search
from llmpp_core.search.kept_scores import KeptScores
from llmpp_core.search.limits import Limit
from llmpp_core.search.records import Record, SearchResult
from llmpp_core.search.schedule import predictors_of, schedule
from llmpp_core.space.architecture import Architecture
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs
from llmpp_core.upstream import SUPERNETS

#: The schedules compared, by the names of `llmpp_core.search.schedule.schedule`, and random search with the supernet.
SCHEDULES = ("costly", "HS-NAS", "adaptive", "cheap", "random", "switch 25", "reversed")
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
    searched with, and other switch iterations have `others`. Random search, which takes longest and asks no cheap predictor, is last.
    """
    main = [(name, LIMITS[1], seed) for seed in range(seeds) for name in SCHEDULES[:-1] if name != "random"]
    few = range(min(others, seeds))
    outer = [(name, limit, seed) for seed in few for limit in (LIMITS[0], LIMITS[2]) for name in SCHEDULES[:4]]
    main += [(name, LIMITS[1], seed) for seed in few for name in (*SCHEDULES[-1:], *SWITCHES)]
    return main + outer + [("random", LIMITS[1], seed) for seed in range(seeds)]


def latency_predictor(task: Task, results: Path = benchmark.RESULTS) -> LatencyPredictor:
    """Return the latency predictor fitted to the latencies measured for the task's benchmark, in ms."""
    table = read_latency_table(results / f"{task.name}.latency.jsonl")
    return LatencyPredictor().fit(list(table["architecture"]), table["latency_ms"])


def limits(task: Task, latency: LatencyPredictor) -> dict[float, float]:
    """Return the limits in ms: quantiles of the predicted latency of random architectures, rounded to a tenth."""
    drawn = latency.predict(task.space.sample(2000, np.random.default_rng(0)))
    return {quantile: round(float(np.quantile(drawn, quantile)), 1) for quantile in LIMITS}


def distilled_predictor(
    task: Task, folder: Path, results: Path = benchmark.RESULTS, teacher: str = OFFLINE
) -> tuple[DistilledPredictor, Path]:
    """Return the cheap predictor and its file in `folder`, whose name tells what it was made from; it is made if it is not there.

    Its teacher sees ten architectures of the benchmark and nothing else. The teacher is `OFFLINE`, the endpoint that is not a
    language model, asked through the whole path that a language model would be; or a language model, by the name of its recorded
    answers to the experiment TASK-distill.
    """
    archs, labels = (_offline_labels if teacher == OFFLINE else partial(_recorded_labels, teacher))(task, results)
    seen = [[arch.to_hat_dict() for arch in archs], [None if np.isnan(label) else label for label in labels], space_record(task.space)]
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
    path = folder / f"{task.name}-{teacher}-{digest[:12]}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        DistilledPredictor(space=task.space).fit(archs, labels, teacher=teacher).save(path)
    return DistilledPredictor.load(path), path


def _offline_labels(task: Task, results: Path) -> tuple[list[Architecture], np.ndarray]:
    records = benchmark.records(task.name, results)
    drawn = records.iloc[np.random.default_rng(0).permutation(len(records))[:10]]
    shown = list(drawn["architecture"]), drawn["bleu"].to_numpy()
    archs = task.space.sample_balanced(_LABELS, np.random.default_rng(0))
    with OfflineEndpoint() as url:
        asked = LLMPredictor(Client(offline_settings(url)), task.prompt_task(), form="json", batch_size=20).fit(*shown)
        return archs, asked.predict(archs)


def _recorded_labels(recording: str, task: Task, results: Path) -> tuple[list[Architecture], np.ndarray]:
    name = f"{task.name}-distill"
    if recording not in (there := recordings(name)):
        raise ValueError(f"no teacher {recording!r} is recorded for {name}; there are {', '.join([OFFLINE, *there])}")
    frame = answers(name, recording)
    return list(frame["architecture"]), frame["predicted"].to_numpy()


@dataclass(frozen=True, kw_only=True)
class SearchJob(Job):
    """Search once from the beginning, asking a supernet of its own."""

    KEY = ("schedule", "limit_ms", "seed")
    schedule: str
    limit_ms: float
    seed: int
    #: File of the cheap predictor, and what says which architectures are within the limit.
    distilled: Path
    latency: LatencyPredictor
    iterations: int = 30

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any]:
        cheap = DistilledPredictor.load(self.distilled)
        checkpoint = trained_supernet(self.folder, task, SUPERNETS[0])
        supernet = load_network(checkpoint, task.space, self.device)
        asked = SupernetPredictor(supernet, pairs["valid"].first(SENTENCES), task.supernet_recipe.label_smoothing)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
        costly = KeptScores(asked, self.folder / f"{task.name}-scores-{digest}-{SENTENCES}.jsonl")
        limited = Limit(self.latency, self.limit_ms, "latency", "ms")
        run: Search
        if self.schedule == "random":
            # As many candidates as the evolutionary search scores at most: 125, then 100 in each iteration.
            run = RandomSearch(task.space, costly, limited, evaluations=125 + 100 * (self.iterations - 1), seed=self.seed, names=[COSTLY])
        else:
            entries, names = schedule(self.schedule, cheap, costly, self.iterations), {id(cheap): CHEAP, id(costly): COSTLY}
            named = [names[id(predictor)] for predictor in predictors_of(entries)]
            run = EvolutionarySearch(task.space, entries, limited, seed=self.seed, names=named)
        began, records, saved = time.perf_counter(), list[Record](), [0.0]
        for record in run.iterate():
            records.append(record)
            saved.append(costly.saved_)
        found = SearchResult(records)
        # What the search would take alone: a score that was there already counts as long as it took when it was made.
        seconds = time.perf_counter() - began + saved[-1]
        # Afterwards, so that it costs the search nothing: what the supernet says of the best of each iteration.
        said = costly.predict([record.best for record in found.records])
        return {
            "best": found.best.to_hat_dict(),
            "score": found.score,
            "supernet_score": float(said[-1]),
            "latency_ms": found.costs["latency"],
            "evaluations": found.evaluations,
            "seconds": round(seconds, 3),
            "parts": {part: round(value + saved[-1] * (part == "score"), 3) for part, value in found.seconds.items()},
            "iterations": [
                {
                    "predictor": record.predictor,
                    "score": record.score,
                    "supernet_score": round(float(score), 5),
                    "evaluations": record.evaluations,
                    "seconds": round(sum(record.seconds.values()) + later - earlier, 3),
                    "best": record.best.to_hat_dict(),
                    "rule": record.rule,
                }
                for record, score, (earlier, later) in zip(found.records, said, pairwise(saved), strict=True)
            ],
        }


def measure(
    given: Task | str,
    folder: Path,
    *,
    results: Path = RESULTS,
    ground_truth: Path = benchmark.RESULTS,
    seeds: int = 5,
    trainings: int = 3,
    teacher: str = OFFLINE,
    **options: Any,
) -> bool:
    """Run all searches that the tables of a task lack and train what they found; returns whether the tables are complete.

    Parameters
    ----------
    given, folder, results, **options
        As for `llmpp_book.studies.measurements.Study`, of a task that has a benchmark.
    ground_truth : path
        Where the tables of the benchmark are.
    seeds, trainings : int
        Searches per schedule at the middle limit, and trainings of each architecture found.
    teacher : str
        Who taught the cheap predictor, see `distilled_predictor`; each teacher has a table of searches of its own.
    """
    study = Study(given, folder, results, **options)
    task, table = study.task, study.table(table_name(teacher))
    _require_supernet(study, ground_truth)
    latency = latency_predictor(task, ground_truth)
    allowed = limits(task, latency)
    there = {row["limit_ms"] for row in table.rows()}
    if there - set(allowed.values()):
        had, now = (", ".join(f"{limit:g}" for limit in sorted(values)) for values in (there, allowed.values()))
        raise ValueError(f"{table.path}: searched under limits of {had} ms; by the latency table they now are {now}; move the file away")
    need_writable(table.path)
    # Made here once, so that the jobs find it.
    common = {"distilled": distilled_predictor(task, study.folder, ground_truth, teacher)[1], "latency": latency, **study.place}
    jobs = [SearchJob(schedule=name, limit_ms=allowed[limit], seed=seed, **common) for name, limit, seed in plan(seeds)]
    rows = study.run(table, jobs)
    ended = rows + [row for name in STOPPED for row in stopped(rows, name)]
    study.train(".found", list(dict.fromkeys(Architecture.from_hat_dict(row["best"]) for row in ended)), trainings)
    return study.complete


def _require_supernet(study: Study, ground_truth: Path) -> None:
    """Raise ValueError unless the supernet that scores candidates was trained to the end and is there."""
    table, name = study.table(".supernets", study.task.supernet_recipe, ground_truth), SUPERNETS[0]
    row = next((row for row in table.rows() if (row["supernet"], row["seed"]) == (name, 0)), None)
    if row is None:
        raise ValueError(f"{table.path} has no {name}, seed 0; measure the benchmark first: llmpp benchmark {study.task.name}")
    if row["diverged"] is not None:
        raise ValueError(f"{table.path}: the training of {name}, seed 0, which is to score candidates, was given up: {row['diverged']}")
    trained_supernet(study.folder, study.task, name)


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
