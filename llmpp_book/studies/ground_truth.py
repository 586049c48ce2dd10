"""This project's own ground truth: architectures trained from scratch on its own tasks, and what supernets say of them.

`llmpp_book.studies.measurements` fills the tables of a task below results/tfs; these functions read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmpp_book import repository
from llmpp_core.jobs.table import Table
from llmpp_core.space.architecture import Architecture

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "tfs"


def table(path: Path, made_from: Mapping[str, Any] | None = None) -> Table:
    """Return a table; its first rows do not say their data, nor of their recipe what could not be chosen yet or no more."""
    data = {"data_sha256": (made_from or {}).get("data_sha256")}
    return Table(path, made_from, {**data, "recipe": {"accumulate": 1, "compile": False}})


def read(path: Path, command: str, column: str = "arch") -> pd.DataFrame:
    """Return a table's rows, with the architecture in `column`, if there is one; ValueError naming the `command` that makes rows."""
    rows = table(path).frame(f"llmpp {command}{repository.HINT}")
    return rows.assign(architecture=rows[column].map(Architecture.from_hat_dict)) if column in rows else rows


def given_up(path: Path) -> list[str]:
    """Return one line for each training in a table that was given up, with the reason."""
    rows = table(path).given_up()
    names = [row["supernet"] if "supernet" in row else Architecture.from_hat_dict(row["arch"]) for row in rows]
    return [f"{name}, seed {row['seed']}: {row['diverged']}" for name, row in zip(names, rows, strict=True)]


def records(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the benchmark of a task, one row per architecture.

    Returns
    -------
    pandas.DataFrame
        In the form of `llmpp_core.upstream.tfs_records`: architecture, bleu and test_bleu (means over the seeds), parameters, flops,
        latency_ms, and the validation BLEU that each supernet gives, under its name. Diverged trainings are left out of the means; an
        architecture of which all diverged is left out.
    """
    from llmpp_core.latency.tables import read_latency_table

    rows = trainings(task_name, results)
    means = (
        rows[rows["diverged"].isna()]
        .groupby("architecture", sort=False)
        .agg(
            bleu=("valid_bleu", "mean"),
            test_bleu=("test_bleu", "mean"),
            valid_loss=("valid_nll", "mean"),
            parameters=("parameters", "first"),
            flops=("flops", "first"),
            seeds=("seed", "size"),
        )
    )
    scores = supernet_scores(task_name, results)
    inherited = side_by_side(scores[scores["seed"] == 0], "valid_bleu", "supernet")
    latency = read_latency_table(results / f"{task_name}.latency.jsonl").set_index("architecture")["latency_ms"]
    return means.join(latency).join(inherited).reset_index()


def side_by_side(rows: pd.DataFrame, value: str, column: str) -> pd.DataFrame:
    """Return one row per architecture, in their order in `rows`, and one column per entry of `column`; nan where there is no `value`."""
    archs = dict.fromkeys(rows["architecture"])
    parts = {name: dict(zip(part["architecture"], part[value], strict=True)) for name, part in rows.groupby(column, sort=False)}
    columns = {name: [values.get(arch, np.nan) for arch in archs] for name, values in parts.items()}
    return pd.DataFrame(columns, index=pd.Index(list(archs), name="architecture"), dtype=float)


def trainings(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the trainings from scratch, one row per architecture and seed; losses in nats per token, no scores where one diverged."""
    return read(results / f"{task_name}.jsonl", f"benchmark {task_name}")


def supernet_scores(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read what each supernet says of each architecture: columns supernet, seed, architecture, valid_loss, valid_bleu."""
    return read(results / f"{task_name}.inherited.jsonl", f"benchmark {task_name}")


def proxy_scores(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the zero-cost proxies: columns proxy, architecture, score, seconds."""
    return read(results / f"{task_name}.proxies.jsonl", f"benchmark {task_name}")


def supernets(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read how the supernets were trained, one row each."""
    return read(results / f"{task_name}.supernets.jsonl", f"benchmark {task_name}")
