"""Searches of this project's own: schedules compared at equal limits and seeds, and what they find trained from scratch.

`measure` fills results/search/TASK.jsonl, a row per search (TASK.RECORDING.jsonl where a language model's recorded answers taught the
cheap predictor), and TASK.found.jsonl, a row per training, and `measure_latency` TASK.latency.jsonl; both go on where they were
stopped. `llmpp_book.studies.search_tables` and `llmpp_core.latency.tables.read_latency_table` read them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_book.studies import ground_truth as benchmark
from llmpp_book.studies.answers import answers, recordings
from llmpp_book.studies.measurements import JUDGE, Inheritance, Job, Study, time_each, trained_supernet
from llmpp_book.studies.search_tables import CHEAP, COSTLY, OFFLINE, PROCESS, RESULTS, RIDGE, STOPPED, found, stopped, table_name
from llmpp_core.jobs.files import need_writable
from llmpp_core.latency.predictor import LatencyPredictor
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.nets.checkpoints import load_network, space_record
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.predictors.baselines import baselines
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.search.alternatives import BayesianSearch, LocalSearch, RandomSearch
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.finalists import finalists
from llmpp_core.search.kept_scores import KeptScores
from llmpp_core.search.limits import Limit
from llmpp_core.search.records import Record, SearchResult
from llmpp_core.search.schedule import Adaptive, Uncertainty, predictors_of, schedule
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.genes import Genes
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs
from llmpp_core.upstream import SUPERNETS

#: The ways of searching that are compared with all seeds: the supernet alone and HS-NAS, the cheapest peer, which asks the supernet
#: alone, and the same from where the cheap predictor thinks best.
MAIN = ("costly", "HS-NAS", "local search", "verified climb")
#: Others, by the names of `llmpp_core.search.schedule.schedule` or of a peer.
OTHERS = ("adaptive", "uncertain", "cheap", *(f"switch {k}" for k in (25, 20, 10, 5)), "reversed", "Bayesian", "random")
#: Quantiles of the latency of random architectures that are the limits; the middle one is searched with most seeds.
LIMITS = (0.25, 0.5, 0.75)
_LABELS = 2000
# Validation pairs on which the supernet scores candidates: what makes some fifty searches affordable on a CPU.
SENTENCES = 200
# Evaluations by the supernet of the peers: below a fifth of what its evolutionary search asks for; and of random search, which has as
# many as that could ask for: 125, then 100 in each iteration.
PEERS = {"local search": 350, "verified climb": 350, "Bayesian": 350, "random": 125 + 29 * 100}


def plan(seeds: int = 5, others: int = 2) -> list[tuple[str, float, int]]:
    """Return (schedule, quantile of the limit, seed) of every search.

    Those of `MAIN` have all `seeds` at the middle limit; they at the outer limits, and `OTHERS` at the middle one, have `others`.
    Random search, which takes longest, is last.
    """
    few = range(min(others, seeds))
    main = [(name, LIMITS[1], seed) for seed in range(seeds) for name in MAIN]
    outer = [(name, limit, seed) for seed in few for limit in (LIMITS[0], LIMITS[2]) for name in (*MAIN, "adaptive", "cheap")]
    more = [(name, LIMITS[1], seed) for name in OTHERS for seed in few]
    return main + more[: -len(few)] + outer + more[-len(few) :]


def latency_predictor(task_name: str, results: Path = benchmark.RESULTS) -> LatencyPredictor:
    """Return the latency predictor fitted to the latencies measured for a task's benchmark, in ms."""
    table = read_latency_table(results / f"{task_name}.latency.jsonl")
    return LatencyPredictor().fit(list(table["architecture"]), table["latency_ms"])


def limits(task: Task, latency: LatencyPredictor) -> dict[float, float]:
    """Return the limits in ms: quantiles of the predicted latency of random architectures, rounded to a tenth where some keep that."""
    drawn = np.asarray(latency.predict(task.space.sample(2000, np.random.default_rng(0))))
    found = {quantile: float(np.quantile(drawn, quantile)) for quantile in LIMITS}
    rounded = {quantile: round(limit, 1) for quantile, limit in found.items()}
    # Networks of a millisecond may all take longer than the tenth below, or differ by less than one.
    coarse = min(rounded.values()) < drawn.min() or len(set(rounded.values())) < len(rounded)
    return {quantile: round(limit, 4) for quantile, limit in found.items()} if coarse else rounded


def demonstrations(task: Task, results: Path = benchmark.RESULTS) -> tuple[list[Architecture], np.ndarray]:
    """Return the ten architectures of the benchmark that all teachers see, and their BLEU."""
    records = benchmark.records(task.name, results)
    drawn = records.iloc[np.random.default_rng(0).permutation(len(records))[:10]]
    return list(drawn["architecture"]), drawn["bleu"].to_numpy()


def distilled_predictor(
    task: Task, folder: Path, results: Path = benchmark.RESULTS, teacher: str = OFFLINE
) -> tuple[DistilledPredictor, Path]:
    """Return the cheap predictor and its file in `folder`, whose name tells what it was made from; it is made if it is not there.

    Its teacher sees ten architectures of the benchmark and nothing else. It is `OFFLINE`, the endpoint that is not a language model,
    asked through the whole path that a language model would be; "ridge", a regression on depth and parameters; a language model, by the
    name of its recorded answers to the experiment TASK-distill; or several of these, as in "ridge+offline", whose labels are averaged.
    """
    archs, labels = _labels(task, results, teacher)
    seen = [[arch.to_hat_dict() for arch in archs], [None if np.isnan(label) else label for label in labels], space_record(task.space)]
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
    path = folder / f"{task.name}-{teacher}-{digest[:12]}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        DistilledPredictor(space=task.space).fit(archs, labels, teacher=teacher).save(path)
    return DistilledPredictor.load(path), path


def _labels(task: Task, results: Path, teacher: str) -> tuple[list[Architecture], np.ndarray]:
    """Return what a teacher, or several on average, says of which architectures: those that a recording has, else many drawn."""
    name, teachers = f"{task.name}-distill", teacher.split("+")
    recorded = recordings(name) if set(teachers) - {OFFLINE, RIDGE} else []
    if unknown := next((who for who in teachers if who not in (OFFLINE, RIDGE, *recorded)), None):
        raise ValueError(f"no teacher {unknown!r} is recorded for {name}; there are {', '.join([OFFLINE, RIDGE, *recorded])}")
    frames = {who: answers(name, who).set_index("architecture")["predicted"] for who in teachers if who in recorded}
    shown = demonstrations(task, results)
    archs = list(next(iter(frames.values())).index) if frames else task.space.sample_balanced(_LABELS, np.random.default_rng(0))
    said = []
    for who in teachers:
        if who in frames:
            said.append(frames[who].reindex(archs).to_numpy())
        elif who == RIDGE:
            said.append(baselines(task.space.qkv_dim)["depth + parameters, ridge"].fit(*shown).predict(archs))
        else:
            with OfflineEndpoint() as url:
                asked = LLMPredictor(Client(offline_settings(url)), task.prompt_task(), form="json", batch_size=20).fit(*shown)
                said.append(asked.predict(archs))
    return archs, np.mean(said, axis=0)


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
    #: A Gaussian process fitted to the demonstrations, which tells how uncertain it is.
    process: Any = None
    #: Of the schedules of an evolutionary search.
    iterations: int = 30

    def _search(self, task: Task, cheap: Any, costly: Any, limited: Limit) -> Iterator[Record]:
        """Yield the records of the search, one after the other where there are two."""
        space, seed, evaluations = task.space, self.seed, PEERS.get(self.schedule, 0)
        peer: dict[str, Any] = {"evaluations": evaluations, "seed": seed, "names": [COSTLY]}
        if self.schedule == "random":
            yield from RandomSearch(space, costly, limited, **peer)
        elif self.schedule == "Bayesian":
            yield from BayesianSearch(space, costly, limited, batch=50, **peer)
        elif self.schedule == "local search":
            yield from LocalSearch(space, costly, limited, batch=50, **peer)
        elif self.schedule == "verified climb":
            first = list(EvolutionarySearch(space, schedule("cheap", cheap, costly), limited, seed=seed, names=[CHEAP]))
            yield from first
            start = finalists(SearchResult(first), Genes(space))
            yield from LocalSearch(space, costly, limited, batch=len(start), start=start, **peer)
        elif self.schedule == "uncertain":
            adaptive = Adaptive(self.process, costly, rule=Uncertainty())
            yield from EvolutionarySearch(space, [adaptive], limited, seed=seed, names=[PROCESS, COSTLY])
        else:
            entries, names = schedule(self.schedule, cheap, costly, self.iterations), {id(cheap): CHEAP, id(costly): COSTLY}
            named = [names[id(predictor)] for predictor in predictors_of(entries)]
            yield from EvolutionarySearch(space, entries, limited, seed=seed, names=named)

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any]:
        cheap = DistilledPredictor.load(self.distilled)
        checkpoint = trained_supernet(self.folder, task, SUPERNETS[0])
        supernet = load_network(checkpoint, task.space, self.device)
        asked = SupernetPredictor(supernet, pairs["valid"].first(SENTENCES), task.supernet_recipe.label_smoothing)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
        costly = KeptScores(asked, self.folder / f"{task.name}-scores-{digest}-{SENTENCES}.jsonl")
        limited = Limit(self.latency, self.limit_ms, "latency", "ms")
        began, records, saved = time.perf_counter(), list[Record](), [0.0]
        for record in self._search(task, cheap, costly, limited):
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
            # Without what scores that were there already took when they were made.
            "spent_seconds": round(seconds - saved[-1], 3),
            "parts": {part: round(value + saved[-1] * (part == "score"), 3) for part, value in found.seconds.items()},
            "iterations": [
                {
                    "predictor": record.predictor,
                    "score": record.score,
                    "supernet_score": round(float(score), 5),
                    "evaluations": record.evaluations,
                    "seconds": round(sum(record.seconds.values()) + later - earlier, 3),
                    # See `search_tables.iterations`.
                    **({} if before and before.best == record.best else {"best": record.best.to_hat_dict()}),
                    "rule": record.rule,
                }
                for before, record, score, (earlier, later) in zip([None, *records[:-1]], records, said, pairwise(saved), strict=True)
            ],
        }


def measure(
    given: Task | str,
    folder: Path,
    *,
    results: Path = RESULTS,
    ground_truth: Path = benchmark.RESULTS,
    seeds: int = 5,
    others: int = 2,
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
    seeds, others, trainings : int
        Searches of each way of `MAIN` at the middle limit, of each of the rest (see `plan`), and trainings of each architecture found.
    teacher : str
        Who taught the cheap predictor, see `distilled_predictor`; each teacher has a table of searches of its own.
    """
    study = Study(given, folder, results, **options)
    plans = Searches(study, ground_truth, teacher)
    plans.search(plan(seeds, others))
    rows = plans.table.rows()
    ended = rows + [row for name in STOPPED for row in stopped(rows, name)]
    archs = list(dict.fromkeys(Architecture.from_hat_dict(row["best"]) for row in ended))
    plans.judge(archs)
    study.train(".found", archs, trainings)
    return study.complete


class Searches:
    """The searches of a study with a teacher's cheap predictor; ValueError if the benchmark they need is not there, or is another."""

    def __init__(self, study: Study, ground_truth: Path, teacher: str = OFFLINE):
        self.study, self.table, task = study, study.table(table_name(teacher)), study.task
        self.trained = _trained_supernets(study, ground_truth)
        latency = latency_predictor(task.name, ground_truth)
        self.limits = limits(task, latency)
        there = {row["limit_ms"] for row in self.table.rows()}
        if there - set(self.limits.values()):
            had, now = (", ".join(f"{limit:g}" for limit in sorted(values)) for values in (there, self.limits.values()))
            raise ValueError(
                f"{self.table.path}: searched under limits of {had} ms; by the latency table they now are {now}; move the file away"
            )
        need_writable(self.table.path)
        # Made here once, so that the jobs find it.
        distilled = distilled_predictor(task, study.folder, ground_truth, teacher)[1]
        process = baselines(task.space.qkv_dim)["HAT + costs, Gaussian process"]
        process = process.fit(*demonstrations(task, ground_truth))
        self._common = {"distilled": distilled, "latency": latency, "process": process, **study.place}

    def search(self, wanted: Sequence[tuple[str, float, int]]) -> bool:
        """Make the searches that are not there, each a (schedule, quantile of the limit, seed); return whether all have their rows."""
        jobs = [SearchJob(schedule=name, limit_ms=self.limits[limit], seed=seed, **self._common) for name, limit, seed in wanted]
        return len(self.study.run(self.table, jobs)) == len(jobs)

    def judge(self, archs: Sequence[Architecture]) -> None:
        """Ask the searches' own supernet and the second one, if it is trained, about what was found, before it is trained."""
        place = self.study.place
        jobs = [Inheritance(supernet=SUPERNETS[0], seed=seed, arch=arch, **place) for seed in self.trained for arch in archs]
        self.study.run(self.study.table(".judged"), jobs)


def _trained_supernets(study: Study, ground_truth: Path) -> list[int]:
    """Return the seeds of the trained HAT supernets; ValueError unless the one that scores candidates, seed 0, is there and was trained."""
    table, name, seeds = study.table(".supernets", study.task.supernet_recipe, ground_truth), SUPERNETS[0], list[int]()
    rows = {row["seed"]: row for row in table.rows() if row["supernet"] == name}
    if 0 not in rows:
        raise ValueError(f"{table.path} has no {name}, seed 0; measure the benchmark first: llmpp benchmark {study.task.name}")
    if rows[0]["diverged"] is not None:
        given_up = rows[0]["diverged"]
        raise ValueError(f"{table.path}: the training of {name}, seed 0, which is to score candidates, was given up: {given_up}")
    for seed in (0, JUDGE):
        if seed in rows and rows[seed]["diverged"] is None:
            trained_supernet(study.folder, study.task, name, seed)
            seeds.append(seed)
    return seeds


def measure_latency(given: Task | str, *, results: Path = RESULTS, **options: Any) -> bool:
    """Measure how long what was trained takes, as `llmpp_book.studies.measurements.time_each`, which takes the options."""
    task = load_task(given) if isinstance(given, str) else given
    archs = list(dict.fromkeys(found(task.name, results)["architecture"]))
    return time_each(task, archs, results / f"{task.name}.latency.jsonl", **options)
