"""The pilot of a task: which length of text and which recipe tell architectures apart, found out on ten of them before all are trained.

A row is one training under one variant of the task; those of the variant that is chosen are rows of the benchmark too. A variant is
WORDS,UPDATES,RATE; the last one is the chosen one:

    python -m llmpp_book.studies.pilot de 12,500,.003 12,1000,.003
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from llmpp_book.studies.ground_truth import RESULTS, read, table
from llmpp_book.studies.measurements import Training, architectures, task_digest
from llmpp_core.jobs.files import cache_dir
from llmpp_core.space.architecture import Architecture
from llmpp_core.tasks.registry import multi30k_mini
from llmpp_core.tasks.task import Task

#: The measures that a row has.
MEASURES = ("valid_loss", "valid_bleu")


class Variant(NamedTuple):
    """A length of text, in words, and a recipe."""

    words: int
    updates: int
    learning_rate: float


@lru_cache(4)
def _task(target: str, variant: Variant) -> Task:
    return multi30k_mini(target, *variant)


@dataclass(frozen=True, kw_only=True)
class _Training(Training):
    """A training under a variant; its data are made where it runs."""

    target: str
    variant: Variant

    def work(self) -> dict[str, Any] | None:
        task = _task(self.target, self.variant)
        row = self.run(task)
        return row and {**row, "data_sha256": task_digest(task)}


def chosen(task: Task, depths: Sequence[int] = (1, 2, 3, 4, 5), each: int = 2) -> list[Architecture]:
    """Return the first architectures of each decoder depth among those of the benchmark."""
    known = architectures(task)
    return [arch for depth in depths for arch in [arch for arch in known if arch.decoder_layers == depth][:each]]


def measure(
    target: str,
    variants: Sequence[Variant],
    folder: Path,
    *,
    results: Path = RESULTS,
    seeds: int = 2,
    executor: Executor | None = None,
    threads: int | None = 1,
    progress: bool = False,
) -> None:
    """Train ten architectures under each variant of "multi30k-mini.en-``target``", and go on where it was stopped."""
    for variant in variants:
        place: dict[str, Any] = {"folder": folder / "-".join(map(str, variant)), "threads": threads, "target": target, "variant": variant}
        place["folder"].mkdir(parents=True, exist_ok=True)
        task = _task(target, variant)
        jobs = [_Training(arch=arch, seed=seed, **place) for seed in range(seeds) for arch in chosen(task)]
        listed = [({**variant._asdict(), **job.key}, (job,)) for job in jobs]
        rows = table(results / f"{task.name}.pilot.jsonl")
        rows.run(_Training.work, listed, executor=executor, progress=f"{task.name} {variant}" if progress else None)


def adopt(target: str, variant: Variant, results: Path = RESULTS) -> int:
    """Add the trainings of the variant that was chosen to the benchmark's table, and return how many it did not have yet."""
    task = _task(target, variant)
    benchmark = table(results / f"{task.name}.jsonl", {"recipe": asdict(task.recipe), "data_sha256": task_digest(task)})
    known = {(json.dumps(row["arch"]), row["seed"]) for row in benchmark.rows()}
    rows = [row for row in table(results / f"{task.name}.pilot.jsonl").rows() if all(row[k] == v for k, v in variant._asdict().items())]
    new = [row for row in rows if (json.dumps(row["arch"]), row["seed"]) not in known]
    benchmark.append({name: value for name, value in row.items() if name not in variant._fields} for row in new)
    return len(new)


def signal(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Return how well each variant tells architectures apart.

    Returns
    -------
    pandas.DataFrame
        One row per variant and measure: architectures, trainings, noise (the standard deviation of one training, pooled over
        architectures), spread (that of the architectures, with the noise taken out of it), their ratio for one training and for the
        mean of three, and the mean seconds of a training.
    """
    path = results / f"{task_name}.pilot.jsonl"
    if not path.exists():
        raise ValueError(f"{path} is not there; measure it with: python -m llmpp_book.studies.pilot de WORDS,UPDATES,RATE ...")
    rows, found = read(path, "pilot"), []
    for variant, part in rows.groupby(list(Variant._fields), sort=False):
        for measure in MEASURES:
            found.append({**dict(zip(Variant._fields, variant, strict=True)), "measure": measure, **told_apart(part, measure)})
            found[-1]["seconds"] = float(part["train_seconds"].mean())
    return pd.DataFrame(found)


def told_apart(trainings: pd.DataFrame, measure: str) -> dict[str, float]:
    """Return how well trainings tell their architectures apart; see `signal` for the numbers. ValueError where each has one seed only."""
    scores = trainings.pivot_table(index=trainings["architecture"].map(str), columns="seed", values=measure).dropna().to_numpy()
    if scores.shape[1] < 2:
        raise ValueError(f"{measure}: expected at least 2 seeds of each architecture, got {scores.shape[1]}")
    noise = float(scores.var(axis=1, ddof=1).mean())
    spread = max(0.0, float(scores.mean(axis=1).var(ddof=1)) - noise / scores.shape[1]) ** 0.5
    # Without noise, as where every BLEU is 0, all that differs is told apart.
    ratio = spread / noise**0.5 if noise else math.inf if spread else math.nan
    ratios = {"ratio": ratio, "ratio of three": 3**0.5 * ratio}
    return {"architectures": len(scores), "trainings": scores.size, "noise": noise**0.5, "spread": spread, **ratios}


def main(target: str, *variants: str) -> None:
    """Train under all variants, adopt the trainings of the last one, and print how well each tells architectures apart."""
    listed = [Variant(int(words), int(updates), float(rate)) for words, updates, rate in (text.split(",") for text in variants)]
    measure(target, listed, cache_dir() / "checkpoints" / "pilot", progress=True)
    print(f"{adopt(target, listed[-1])} trainings adopted")
    print(signal(f"multi30k-mini.en-{target}").to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
