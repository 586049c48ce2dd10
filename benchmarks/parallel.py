"""Parallel efficiency of the training farm and of labelling, from 1 process to one per core, in one run.

``python benchmarks/parallel.py`` starts a local cluster of one process, two, and so on, each with one thread, and gives it the same
jobs: short trainings from scratch of one architecture with different seeds, and requests to the offline endpoint, which is not a
language model and runs in the worker as a model on the worker's machine would. Every size is measured several times, in turns, and the
fastest counts. Starting the processes and loading what they need is not counted.

``--device cuda`` has the processes share one GPU: the number of trainings at which throughput stops growing is what fills it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Read when the workers load their libraries.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from llmpp_book.studies.measurements import prepare, provenance
from llmpp_core.jobs.cluster import connect
from llmpp_core.jobs.table import results
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.prompts import Prompt, build_prompt
from llmpp_core.nets.training import train
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import TINY
from llmpp_core.tasks.registry import load_task

# Requests of one labelling job.
TOGETHER = 25


def train_once(task: Any, seed: int, updates: int, device: str) -> int:
    """Train the task's largest architecture for some updates; returns the number of target tokens."""
    task, pairs = prepare(task, device, 1)
    model = Transformer(task.space.largest(), task.space, len(task.vocabulary), 0.0).to(device)
    return train(model, pairs["train"], replace(task.recipe, updates=updates), seed=seed).tokens


def label_once(prompts: list[Prompt]) -> list[float]:
    """Ask an endpoint of this worker's own, through a client of its own."""
    with OfflineEndpoint() as url, TemporaryDirectory() as folder:
        return [answer.values[0] for (answer,) in Client(offline_settings(url), cache=Path(folder) / "llm.sqlite3").ask(prompts)]


def label_jobs(requests: int) -> list[tuple[str, tuple[list[Prompt]]]]:
    archs = TINY.sample_balanced(requests + 10, np.random.default_rng(0))
    shown = [(arch, 20.0 + i) for i, arch in enumerate(archs[:10])]
    task = load_task("synthetic").prompt_task()
    prompts = [build_prompt(task, shown, [arch]) for arch in archs[10:]]
    return [(str(i), (prompts[i : i + TOGETHER],)) for i in range(0, len(prompts), TOGETHER)]


def timed(work: Any, jobs: list[Any], executor: Executor, processes: int) -> float:
    """Return the seconds that the jobs take, once every process has done one of them."""
    for _ in results(work, [(f"warm {i}", jobs[i % len(jobs)][1]) for i in range(2 * processes)], executor):
        pass
    began = time.perf_counter()
    assert sum(1 for _ in results(work, jobs, executor)) == len(jobs)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="synthetic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=list(range(1, (os.cpu_count() or 1) + 1)))
    parser.add_argument("--trainings", type=int, default=12)
    parser.add_argument("--updates", type=int, default=100, help="updates of one training")
    parser.add_argument("--requests", type=int, default=1200, help="requests to label; none on a GPU")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    task = load_task(args.task)
    farms: dict[str, tuple[Any, list[Any]]] = {
        "trainings": (train_once, [(str(i), (task.name, i, args.updates, args.device)) for i in range(args.trainings)])
    }
    if args.device == "cpu":
        farms["requests"] = (label_once, label_jobs(args.requests))
    amount = {"trainings": args.trainings, "requests": args.requests}
    seconds: dict[str, dict[int, float]] = {name: {} for name in farms}
    for _ in range(args.repeats):
        for n in args.processes:
            with connect(f"local:{n}", timeout=300) as executor:
                for name, (work, jobs) in farms.items():
                    seconds[name][n] = min(seconds[name].get(n, np.inf), timed(work, jobs, executor, n))
    print("| job | processes | seconds | per second | efficiency |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        first = args.processes[0]
        for n, taken in times.items():
            efficiency = first * times[first] / (n * taken)
            print(f"| {name} | {n} | {taken:.1f} | {amount[name] / taken:.2f} | {efficiency:.2f} |")
    report = {"seconds": seconds, "amount": amount, "updates": args.updates, "cpu_count": os.cpu_count(), **provenance(args.device)}
    print(json.dumps({**report, "load_average": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
