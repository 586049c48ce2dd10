"""The measurements behind this project's own ground truth: trainings, supernets and what they say, proxies, latency.

`measure` fills the tables of a task below results/tfs, and goes on where it was stopped; `llmpp_book.studies.ground_truth` reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from llmpp_book import repository
from llmpp_book.studies.ground_truth import RESULTS, table
from llmpp_core.jobs.files import need_writable
from llmpp_core.jobs.provenance import commit, processor
from llmpp_core.jobs.table import Table
from llmpp_core.latency.profiler import extend_latency_table
from llmpp_core.latency.tables import LatencySettings
from llmpp_core.nets.checkpoints import digest, load_network, space_record
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.proxies import PROXIES, ZeroCostPredictor
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import History, Recipe, Sampling, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.tasks.evaluation import Scores, evaluate
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs
from llmpp_core.upstream import SUPERNETS

#: Seed of the second HAT supernet, which judges what searches with the first one find.
JUDGE = 1
#: Further architectures whose latency is measured, to check a prediction of it.
CHECKED = 30
#: Most training pairs of a task that is sent to the workers of a cluster; a larger one they make by its name.
LARGEST = 1_000_000
#: Kind and sampling of each supernet, by the name that the upstream records give it.
SUPERNET_KINDS: dict[str, tuple[str, Sampling]] = dict(
    zip(SUPERNETS, [("shared", uniform), ("shared", sandwich), ("layer-wise", uniform), ("neuron-wise", uniform)], strict=True)
)


def architectures(task: Task, n: int = 48) -> list[Architecture]:
    """Return the architectures of the task's benchmark, as many of each decoder depth; a longer list begins with a shorter one."""
    return task.space.sample_balanced(n, np.random.default_rng(0))


def prepare(given: Task | str, device: str, threads: int | None) -> tuple[Task, dict[str, Pairs]]:
    """Set the number of threads and return the task, made by its name where that is given, and its sides on the device."""
    if threads is not None:
        torch.set_num_threads(threads)
    task = load_task(given) if isinstance(given, str) else given
    return task, {side: pairs.to(device) for side, pairs in task.pairs.items()}


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """What one row is about, and where and until when it is worked out."""

    #: The fields that are the key of the row.
    KEY: ClassVar[tuple[str, ...]]
    #: Where checkpoints are.
    folder: Path = Path()
    device: str = "cpu"
    #: Processor threads; PyTorch's choice by default.
    threads: int | None = None
    #: Seconds since the epoch after which nothing is begun.
    stop: float = math.inf

    @property
    def key(self) -> dict[str, Any]:
        """The beginning of the row."""
        values = {name: getattr(self, name) for name in self.KEY}
        return {name: value.to_hat_dict() if isinstance(value, Architecture) else value for name, value in values.items()}

    def run(self, given: Task | str) -> dict[str, Any] | None:
        """Return the rest of the row; None if time was up before."""
        if time.time() > self.stop:
            return None
        row = self._work(*prepare(given, self.device, self.threads))
        return row and {**row, **provenance(self.device)}

    @abstractmethod
    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any] | None:
        """Return the rest of the row without where it comes from."""


@dataclass(frozen=True, kw_only=True)
class Training(Job):
    """Train an architecture from scratch. Its checkpoint stays, and with it what the training has cost, until `forget` removes it."""

    KEY = ("arch", "seed")
    arch: Architecture
    seed: int

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any] | None:
        model = Transformer(self.arch, task.space, len(task.vocabulary), task.recipe.dropout).to(self.device)
        checkpoint = _checkpoint(self.folder, task.name, self.arch, self.seed)
        history = train(model, pairs["train"], task.recipe, seed=self.seed, checkpoint=checkpoint, seconds=self.stop - time.time())
        if not history.finished:
            return None
        scores: dict[str, float | None] = dict.fromkeys(Scores._fields)
        if history.diverged is None:
            scores = {name: round(value, 4) for name, value in evaluate(model, task, pairs)._asdict().items()}
        return {
            **scores,
            "diverged": history.diverged,
            "parameters": count_parameters(self.arch, task.space.qkv_dim),
            "embedding_parameters": model.embedding.weight.numel(),
            "flops": count_flops(self.arch, len(task.vocabulary), qkv_dim=task.space.qkv_dim),
            **_course(history),
        }


@dataclass(frozen=True, kw_only=True)
class SupernetTraining(Job):
    """Train one of `SUPERNET_KINDS`; its checkpoint stays."""

    KEY = ("supernet", "seed")
    supernet: str
    seed: int = 0

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any] | None:
        kind, sampling = SUPERNET_KINDS[self.supernet]
        model = SuperTransformer(task.space, len(task.vocabulary), kind, dropout=task.supernet_recipe.dropout).to(self.device)
        path, seconds = supernet_path(self.folder, task.name, self.supernet, self.seed), self.stop - time.time()
        history = train(model, pairs["train"], task.supernet_recipe, seed=self.seed, sampling=sampling, checkpoint=path, seconds=seconds)
        if not history.finished:
            return None
        size = sum(parameter.numel() for parameter in model.parameters())
        return {"diverged": history.diverged, "parameters": size, **_course(history)}


@dataclass(frozen=True, kw_only=True)
class Inheritance(Job):
    """Ask a trained supernet about one architecture: validation loss and BLEU with inherited weights."""

    KEY = ("supernet", "seed", "arch")
    supernet: str
    seed: int = 0
    arch: Architecture

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any] | None:
        supernet = load_network(trained_supernet(self.folder, task, self.supernet, self.seed), task.space, self.device)
        model = supernet.subnet(self.arch).eval()
        loss = validation_loss(model, pairs["valid"], label_smoothing=task.supernet_recipe.label_smoothing)
        bleu = task.bleu(translate(model, pairs["valid"], beam=task.beam), "valid")
        return {"valid_loss": round(loss, 4), "valid_bleu": round(bleu, 4)}


@dataclass(frozen=True, kw_only=True)
class ZeroCost(Job):
    """Score an untrained network: the mean over four draws of its weights."""

    KEY = ("proxy", "arch")
    proxy: str
    arch: Architecture

    def _work(self, task: Task, pairs: dict[str, Pairs]) -> dict[str, Any] | None:
        predictor = ZeroCostPredictor(self.proxy, pairs["train"], task.space, len(task.vocabulary), repeats=4)
        started = time.perf_counter()
        score = float(predictor.predict([self.arch])[0])
        return {"score": score, "seconds": round(time.perf_counter() - started, 4)}


def supernet_path(folder: Path, task_name: str, name: str, seed: int = 0) -> Path:
    """Return where the checkpoint of a supernet is kept."""
    short = "".join(c if c.isalnum() else "-" for c in name.lower())
    return folder / f"{task_name}-{short}-{seed}.safetensors"


def trained_supernet(folder: Path, task: Task, name: str, seed: int = 0) -> Path:
    """Return the checkpoint of a supernet whose training is in the tables; ValueError if it is not there."""
    path = supernet_path(folder, task.name, name, seed)
    if not path.exists():
        raise ValueError(f"{path} is gone; remove the row of {name}, seed {seed}, from {task.name}.supernets.jsonl to train it again")
    return path


@dataclass
class Study:
    """Tables of one task, and the jobs that fill them."""

    #: A task, or the name of a registered one, which is then made once per process; to a cluster a task is sent once for each worker.
    given: Any
    #: Where checkpoints are, which the machines of a cluster share; and where the tables are.
    folder: Path
    results: Path
    #: "cpu" or "cuda"; and processor threads of one job, PyTorch's choice by default.
    device: str = "cpu"
    threads: int | None = None
    #: Stop after so long; the next call goes on.
    seconds: float = math.inf
    #: Runs the jobs side by side.
    executor: Executor | None = None
    #: Show progress bars.
    progress: bool = False

    def __post_init__(self) -> None:
        stop = time.time() + self.seconds
        self.task: Task = load_task(self.given) if isinstance(self.given, str) else self.given
        self.folder = self.folder.resolve()
        need_writable(self.folder / "checkpoint")
        self.folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.executor, "_client"):
            # Loaded for clusters only: it takes half a second.
            from llmpp_core.jobs.cluster import require_shared, sent_once

            require_shared(self.executor, self.folder)
            if not isinstance(self.given, str) or len(self.task.pairs["train"]) <= LARGEST:
                self.given = sent_once(self.executor, self.task)
        #: What all jobs have in common.
        self.place: dict[str, Any] = {"folder": self.folder, "device": self.device, "threads": self.threads, "stop": stop}
        self.data_sha256 = task_digest(self.task)
        #: Whether all jobs so far have a row.
        self.complete = True

    def table(self, name: str, recipe: Recipe | None = None, results: Path | None = None) -> Table:
        """Return the table TASK``name``.jsonl, whose rows come from the task's data and, where one is given, a recipe."""
        made_from = {"recipe": asdict(recipe)} if recipe else {}
        return table((results or self.results) / f"{self.task.name}{name}.jsonl", made_from | {"data_sha256": self.data_sha256})

    def run(self, rows: Table, jobs: Sequence[Job], written: Callable[[Any], None] | None = None) -> list[dict[str, Any]]:
        """Run the jobs that a table lacks, and return the rows of all that are done."""
        listed, title = [(job.key, (job, self.given)) for job in jobs], rows.path.stem if self.progress else None
        found = rows.run(Job.run, listed, executor=self.executor, progress=title, written=written)
        self.complete &= len(found) == len(listed)
        return found

    def train(self, name: str, archs: Sequence[Architecture], seeds: int) -> bool:
        """Train architectures from scratch with so many seeds each, as `train_each`, and one seed after the other."""
        return self.train_each(name, dict.fromkeys(archs, seeds))

    def train_each(self, name: str, seeds: Mapping[Architecture, int]) -> bool:
        """Train architectures, each with seeds up to a number of its own, and return whether all have their rows.

        The checkpoint of each is removed when its row is written.
        """

        def forget(row: dict[str, Any]) -> None:
            _checkpoint(self.folder, self.task.name, Architecture.from_hat_dict(row["arch"]), row["seed"]).unlink(missing_ok=True)

        each = [(seed, arch) for arch, number in seeds.items() for seed in range(number)]
        jobs = [Training(arch=arch, seed=seed, **self.place) for seed, arch in sorted(each, key=lambda pair: pair[0])]
        return len(self.run(self.table(name, self.task.recipe), jobs, forget)) == len(jobs)


def measure(given: Task | str, folder: Path, *, results: Path = RESULTS, n: int = 48, seeds: int = 3, **options: Any) -> bool:
    """Train and score all that the tables of a task lack, and return whether they are complete.

    Parameters
    ----------
    n, seeds : int
        Architectures, and trainings of each. Fewer can become more later.
    given, folder, results, **options
        As for `Study`.
    """
    study = Study(given, folder, results, **options)
    archs, place = architectures(study.task, n), study.place
    study.train("", archs, seeds)
    nets = [SupernetTraining(supernet=name, **place) for name in SUPERNET_KINDS]
    nets.append(SupernetTraining(supernet=SUPERNETS[0], seed=JUDGE, **place))
    rows = study.run(study.table(".supernets", study.task.supernet_recipe), nets)
    trained = [{"supernet": row["supernet"], "seed": row["seed"]} for row in rows if row["diverged"] is None]
    study.run(study.table(".inherited"), [Inheritance(arch=arch, **net, **place) for net in trained for arch in archs])
    study.run(study.table(".proxies"), [ZeroCost(proxy=name, arch=arch, **place) for name in PROXIES for arch in archs])
    return study.complete


def time_each(task: Task, archs: Sequence[Architecture], path: Path, device: str = "cpu", repeats: int = 7, **options: Any) -> bool:
    """Measure how long architectures take, on a machine that does nothing else, and go on where it was stopped.

    Returns whether the table is complete; options are as for `llmpp_core.latency.profiler.extend_latency_table`.
    """
    settings, rng = LatencySettings(len(task.vocabulary), device=device), np.random.default_rng(0)
    return extend_latency_table(archs, task.space, settings, path, rng, repeats=repeats, **options)


def measure_latency(given: Task | str, *, results: Path = RESULTS, n: int = 48, seconds: float = math.inf, **options: Any) -> bool:
    """Measure how long the architectures of a benchmark take, as `time_each`, which takes the options.

    Then they are measured again, in turns with `CHECKED` others, into a table of its own: to check how well latency repeats, and
    whether what predicts it is right about architectures that it was not fitted to. Returns whether the tables are complete.
    """
    stop = time.time() + seconds
    task = load_task(given) if isinstance(given, str) else given
    known = architectures(task, n)
    others = [arch for arch in task.space.sample(n + CHECKED, np.random.default_rng(1)) if arch not in known][:CHECKED]
    complete = []
    for archs, name in ((known, "latency"), ([*known, *others], "latency-check")):
        complete.append(time_each(task, archs, results / f"{task.name}.{name}.jsonl", seconds=stop - time.time(), **options))
    return all(complete)


def task_digest(task: Task) -> str:
    """Return a sha256 of all tokens of a task, which text and vocabulary decide, and of its search space."""
    parts = {side: digest(pairs) for side, pairs in task.pairs.items()}
    return hashlib.sha256(json.dumps([parts, space_record(task.space)], sort_keys=True).encode()).hexdigest()


def _checkpoint(folder: Path, task_name: str, arch: Architecture, seed: int) -> Path:
    return folder / f"{task_name}-{hashlib.sha256(arch.to_hat_yaml().encode()).hexdigest()[:12]}-{seed}.safetensors"


def _course(history: History) -> dict[str, Any]:
    """Return how a training went; JSON has no word for a loss that is not a number."""
    losses = [round(value, 4) if math.isfinite(value) else None for value in history.loss]
    return {"train_loss": losses, "train_tokens": history.tokens, "train_seconds": round(history.seconds, 1)}


@cache
def provenance(device: str) -> dict[str, Any]:
    """Say where a row comes from; asked once per process, so that a commit made meanwhile does not count."""
    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"{processor()}, {torch.get_num_threads()} thread(s)"
    libraries = {library: version(library) for library in ("torch", "tokenizers", "sacrebleu", "numpy")}
    return {"device": on, "libraries": libraries, "commit": commit(repository.ROOT)}
