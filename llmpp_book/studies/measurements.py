"""The measurements behind this project's own ground truth: trainings, supernets and what they say, proxies, latency.

`measure` fills the tables of a task below results/tfs, and goes on where it was stopped; `llmpp_book.studies.ground_truth` reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmpp_book import repository
from llmpp_book.studies.ground_truth import ARCHITECTURES, RESULTS, SEEDS
from llmpp_core.jobs.files import read_rows, replace_file, writable
from llmpp_core.jobs.provenance import commit, processor
from llmpp_core.jobs.table import here, run_jobs
from llmpp_core.latency.profiler import extend_latency_table
from llmpp_core.latency.tables import LatencySettings
from llmpp_core.nets.checkpoints import digest, load_network, space_record
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.proxies import PROXIES, ZeroCostPredictor
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import History, Sampling, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.tasks.evaluation import Scores, evaluate
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs
from llmpp_core.upstream import SUPERNETS

#: Further architectures whose latency is measured, to check a prediction of it.
CHECKED = 30


#: Kind and sampling of each supernet, by the name that the upstream records give it.
SUPERNET_KINDS: dict[str, tuple[str, Sampling]] = dict(
    zip(SUPERNETS, [("shared", uniform), ("shared", sandwich), ("layer-wise", uniform), ("neuron-wise", uniform)], strict=True)
)


def architectures(task: Task, n: int = ARCHITECTURES) -> list[Architecture]:
    """Return the architectures of the task's benchmark; a longer list begins with a shorter one."""
    return task.space.sample_balanced(n, np.random.default_rng(0))


def train_from_scratch(
    task: Task | str, arch: Architecture, seed: int, folder: Path, device: str, threads: int | None, stop: float, keep: bool = False
) -> dict[str, Any] | None:
    """Train one architecture and return what a row says of it; None if the clock reached `stop` (seconds since the epoch).

    With `keep` the checkpoint stays, and with it what the training has cost, until `forget` removes it.
    """
    if time.time() > stop:
        return None
    task, pairs = prepare(task, device, threads)
    model = Transformer(arch, task.space, len(task.vocabulary), task.recipe.dropout).to(device)
    checkpoint = _checkpoint(writable(folder), task.name, arch, seed)
    history = train(model, pairs["train"], task.recipe, seed=seed, checkpoint=checkpoint, seconds=stop - time.time())
    if not history.finished:
        return None
    scores: dict[str, float | None] = dict.fromkeys(Scores._fields)
    if history.diverged is None:
        scores = {name: round(value, 4) for name, value in evaluate(model, task, pairs)._asdict().items()}
    if not keep:
        checkpoint.unlink(missing_ok=True)
    return {
        **scores,
        "diverged": history.diverged,
        "parameters": count_parameters(arch, task.space.qkv_dim),
        "embedding_parameters": model.embedding.weight.numel(),
        "flops": count_flops(arch, len(task.vocabulary), qkv_dim=task.space.qkv_dim),
        "train_loss": _curve(history),
        "train_tokens": history.tokens,
        "train_seconds": round(history.seconds, 1),
        "recipe": asdict(task.recipe),
        **provenance(device),
    }


def _checkpoint(folder: Path, task_name: str, arch: Architecture, seed: int) -> Path:
    return folder / f"{task_name}-{hashlib.sha256(arch.to_hat_yaml().encode()).hexdigest()[:12]}-{seed}.safetensors"


def forget(folder: Path, task_name: str, row: Mapping[str, Any]) -> None:
    """Remove the checkpoint of a training whose row is in its table."""
    _checkpoint(folder, task_name, Architecture.from_hat_dict(row["arch"]), row["seed"]).unlink(missing_ok=True)


def train_supernet(
    task: Task | str, name: str, seed: int, folder: Path, device: str, threads: int | None, stop: float
) -> dict[str, Any] | None:
    """Train one of `SUPERNET_KINDS`; returns as `train_from_scratch`, with the bytes of the checkpoint beside what is a row's."""
    if time.time() > stop:
        return None
    task, pairs = prepare(task, device, threads)
    kind, sampling = SUPERNET_KINDS[name]
    model = SuperTransformer(task.space, len(task.vocabulary), kind, dropout=task.supernet_recipe.dropout).to(device)
    checkpoint = supernet_path(writable(folder), task.name, name, seed)
    seconds = stop - time.time()
    history = train(model, pairs["train"], task.supernet_recipe, seed=seed, sampling=sampling, checkpoint=checkpoint, seconds=seconds)
    if not history.finished:
        return None
    return {
        "checkpoint": checkpoint.read_bytes(),
        "diverged": history.diverged,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_loss": _curve(history),
        "train_tokens": history.tokens,
        "train_seconds": round(history.seconds, 1),
        "recipe": asdict(task.supernet_recipe),
        **provenance(device),
    }


def inherit(
    task: Task | str, name: str, seed: int, arch: Architecture, folder: Path, device: str, threads: int | None, stop: float
) -> dict[str, Any] | None:
    """Return what a trained supernet says of one architecture: validation loss and BLEU with inherited weights."""
    if time.time() > stop:
        return None
    task, pairs = prepare(task, device, threads)
    path = here(supernet_path(folder, task.name, name, seed))
    if not path.exists():
        raise ValueError(f"{path} is gone; remove the row of {name}, seed {seed}, from {task.name}.supernets.jsonl to train it again")
    supernet = load_network(path, task.space, device)
    model = supernet.subnet(arch).eval()
    loss = validation_loss(model, pairs["valid"], label_smoothing=task.supernet_recipe.label_smoothing)
    bleu = task.bleu(translate(model, pairs["valid"], beam=task.beam), "valid")
    return {"valid_loss": round(loss, 4), "valid_bleu": round(bleu, 4), **provenance(device)}


def zero_cost(task: Task | str, proxy: str, arch: Architecture, device: str, threads: int | None, stop: float) -> dict[str, Any] | None:
    """Return the score of an untrained network, the mean over four draws of its weights."""
    if time.time() > stop:
        return None
    task, pairs = prepare(task, device, threads)
    predictor = ZeroCostPredictor(proxy, pairs["train"], task.space, len(task.vocabulary), repeats=4)
    started = time.perf_counter()
    score = float(predictor.predict([arch])[0])
    return {"score": score, "seconds": round(time.perf_counter() - started, 4), **provenance(device)}


def supernet_path(folder: Path, task_name: str, name: str, seed: int) -> Path:
    """Return where the checkpoint of a supernet is kept."""
    short = "".join(c if c.isalnum() else "-" for c in name.lower())
    return folder / f"{task_name}-{short}-{seed}.safetensors"


def measure(
    given: Task | str,
    folder: Path,
    *,
    results: Path = RESULTS,
    n: int = ARCHITECTURES,
    seeds: int = SEEDS,
    supernet_seeds: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = math.inf,
    executor: Executor | None = None,
    progress: bool = False,
) -> bool:
    """Train and score all that the tables of a task lack.

    Parameters
    ----------
    given : Task or str
        A task, or the name of one of `llmpp_core.tasks.task`, which then is made once per process and not sent with each job. To a cluster
        a task is sent once for each worker.
    folder : path
        Where checkpoints go. Those of supernets come back from a cluster; those of trainings under way stay with the worker.
    results : path
        Where the tables are.
    n, seeds, supernet_seeds : int
        Architectures, trainings of each, and trainings of each supernet. Fewer can become more later.
    device : str
        "cpu" or "cuda".
    threads : int, optional
        Processor threads of one job; PyTorch's choice by default.
    seconds : float
        Stop after so long; the next call goes on.
    executor : concurrent.futures.Executor, optional
        Runs the jobs side by side.
    progress : bool
        Show progress bars.

    Returns
    -------
    bool
        Whether the tables are complete.
    """
    # Loaded here: it takes half a second, which those who only read the tables need not wait.
    from llmpp_core.jobs.cluster import on_cluster, sent

    task = load_task(given) if isinstance(given, str) else given
    stop = time.time() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    archs = architectures(task, n)
    common = (folder, device, threads, stop)

    data_sha256 = task_digest(task)

    def run(work: Callable[..., Any], jobs: Sequence[Any], table: str, receive: Any = None, written: Any = None) -> list[dict[str, Any]]:
        path = results / f"{task.name}{table}.jsonl"
        refuse_others(path, data_sha256, asdict(task.recipe if table == "" else task.supernet_recipe))
        title = f"{task.name}{table}" if progress else None
        rows = run_jobs(work, jobs, path, executor=executor, progress=title, receive=receive or label, written=written)
        complete.append(len(rows) == len(jobs))
        return rows

    def label(row: dict[str, Any]) -> None:
        row["data_sha256"] = data_sha256

    def keep_checkpoint(row: dict[str, Any]) -> None:
        label(row)
        path, data = supernet_path(folder, task.name, row["supernet"], row["seed"]), row.pop("checkpoint")
        if not path.exists() or path.read_bytes() != data:
            replace_file(path, data)

    complete: list[bool] = []
    # On the machines of a cluster nobody but the job itself can remove what it wrote.
    keep = not on_cluster(executor)
    with sent(executor, given, task) as passed:
        scratch = [({"arch": a.to_hat_dict(), "seed": s}, (passed, a, s, *common, keep)) for s in range(seeds) for a in archs]
        run(train_from_scratch, scratch, "", written=partial(forget, folder, task.name) if keep else None)
        nets = [(name, seed) for seed in range(supernet_seeds) for name in SUPERNET_KINDS]
        supernet_jobs = [({"supernet": m, "seed": s}, (passed, m, s, *common)) for m, s in nets]
        trained = run(train_supernet, supernet_jobs, ".supernets", keep_checkpoint)
        ready = [(row["supernet"], row["seed"]) for row in trained if row["diverged"] is None]
        inherited = [({"supernet": m, "seed": s, "arch": a.to_hat_dict()}, (passed, m, s, a, *common)) for m, s in ready for a in archs]
        with sent(executor, files=[supernet_path(folder, task.name, m, s) for m, s in ready]):
            run(inherit, inherited, ".inherited")
        run(zero_cost, [({"proxy": p, "arch": a.to_hat_dict()}, (passed, p, a, *common[1:])) for p in PROXIES for a in archs], ".proxies")
    return all(complete)


def task_digest(task: Task) -> str:
    """Return a sha256 of all tokens of a task, which text and vocabulary decide, and of its search space."""
    parts = {side: digest(pairs) for side, pairs in task.pairs.items()}
    return hashlib.sha256(json.dumps([parts, space_record(task.space)], sort_keys=True).encode()).hexdigest()


def refuse_others(path: Path, data_sha256: str, recipe: Mapping[str, Any]) -> None:
    """Raise ValueError if a row of a table says that it comes from other data (see `task_digest`) or another recipe."""
    for number, row in enumerate(read_rows(path), 1):
        # Earlier rows do not say what they were measured on.
        if row.get("data_sha256", data_sha256) != data_sha256:
            raise ValueError(f"{path}:{number}: measured when the task had another text, vocabulary or search space; move the file away")
        # Earlier rows do not say that an update is one batch.
        there = {"accumulate": 1} | row.get("recipe", recipe)
        different = [name for name in recipe if there.get(name) != recipe[name]]
        if different:
            name = different[0]
            raise ValueError(f"{path}:{number}: measured with {name}={there.get(name)}, not {recipe[name]}; move the file away")


def measure_latency(
    given: Task | str,
    *,
    results: Path = RESULTS,
    n: int = ARCHITECTURES,
    repeats: int = 7,
    device: str = "cpu",
    seconds: float = math.inf,
    progress: bool = False,
) -> bool:
    """Measure how long the architectures of a benchmark take, on a machine that does nothing else, and go on where it was stopped.

    Then they are measured again, in turns with `CHECKED` others, into a table of its own: to check how well latency repeats, and
    whether what predicts it is right about architectures that it was not fitted to. Returns whether the tables are complete.
    """
    stop = time.time() + seconds
    task = load_task(given) if isinstance(given, str) else given
    settings = LatencySettings(len(task.vocabulary), device=device)
    known = architectures(task, n)
    others = [arch for arch in task.space.sample(n + CHECKED, np.random.default_rng(1)) if arch not in known][:CHECKED]
    complete = []
    for archs, name in ((known, "latency"), ([*known, *others], "latency-check")):
        path, rng, left = results / f"{task.name}.{name}.jsonl", np.random.default_rng(0), stop - time.time()
        complete.append(extend_latency_table(archs, task.space, settings, path, rng, repeats=repeats, seconds=left, progress=progress))
    return all(complete)


def prepare(task: Task | str, device: str, threads: int | None) -> tuple[Task, dict[str, Pairs]]:
    """Set the number of threads and return the task, made by its name where that is given, and its sides on the device."""
    if threads is not None:
        torch.set_num_threads(threads)
    task = here(task)
    task = load_task(task) if isinstance(task, str) else task
    return task, {side: pairs.to(device) for side, pairs in task.pairs.items()}


def _curve(history: History) -> list[float | None]:
    """Return the losses as JSON holds them; it has no word for what is not a number."""
    return [round(value, 4) if math.isfinite(value) else None for value in history.loss]


@cache
def provenance(device: str) -> dict[str, Any]:
    """Say where a row comes from; asked once per process, so that a commit made meanwhile does not count."""
    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"{processor()}, {torch.get_num_threads()} thread(s)"
    libraries = {library: version(library) for library in ("torch", "tokenizers", "sacrebleu", "numpy")}
    return {"device": on, "libraries": libraries, "commit": commit(repository.ROOT)}
