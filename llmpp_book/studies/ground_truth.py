"""This project's own ground truth: architectures trained from scratch on its own tasks, and what supernets say of them.

`measure` fills the tables of a task below results/tfs, and goes on where it was stopped; `records` reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from llmpp_book import repository
from llmpp_core.jobs.files import read_rows
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.space.architecture import Architecture

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "tfs"
#: Architectures of a benchmark, as many of each decoder depth; and seeds that each is trained with.
ARCHITECTURES, SEEDS = 48, 3


def given_up(path: Path) -> list[str]:
    """Return one line for each training in a table that was given up, with the reason."""
    rows = [row for row in read_rows(path) if row.get("diverged") is not None]
    names = [f"{row['supernet'] if 'supernet' in row else Architecture.from_hat_dict(row['arch'])}, seed {row['seed']}" for row in rows]
    return [f"{name}: {row['diverged']}" for name, row in zip(names, rows, strict=True)]


def records(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the benchmark of a task, one row per architecture.

    Returns
    -------
    pandas.DataFrame
        In the form of `llmpp_core.upstream.tfs_records`: architecture, bleu and test_bleu (means over the seeds), parameters, flops,
        latency_ms, and the validation BLEU that each supernet gives, under its name. Diverged trainings are left out of the means; an
        architecture of which all diverged is left out.
    """
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
    return _table(task_name, "", results)


def supernet_scores(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read what each supernet says of each architecture: columns supernet, seed, architecture, valid_loss, valid_bleu."""
    return _table(task_name, ".inherited", results)


def proxy_scores(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the zero-cost proxies: columns proxy, architecture, score, seconds."""
    return _table(task_name, ".proxies", results)


def supernets(task_name: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read how the supernets were trained, one row each."""
    return _table(task_name, ".supernets", results)


def _table(task_name: str, table: str, results: Path) -> pd.DataFrame:
    path = results / f"{task_name}{table}.jsonl"
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} is not there or empty; measure it with: llmpp benchmark {task_name}")
    return pd.DataFrame([{**row, "architecture": Architecture.from_hat_dict(row["arch"])} if "arch" in row else row for row in rows])
