"""Latency predictors on HAT's eight tables: ours, two simple ones and HAT's MLP on the same splits, errors and training time.

``python benchmarks/latency.py`` takes about half an hour on one core, nearly all of it for the MLP. It can be interrupted: what is
done is kept in a JSONL file below _build and not done again. At the end everything goes to results/latency_predictors.csv.
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from llmpp_book.studies.latency import JOBS, MLP, OWN, RESULTS, compare, predictors
from llmpp_core import upstream
from llmpp_core.jobs.files import alone, append_rows, read_rows
from llmpp_core.jobs.provenance import commit

ROOT = Path(__file__).resolve().parents[1]
PARTIAL = ROOT / "_build" / "latency_predictors.jsonl"


def cpu() -> str:
    """Return the model of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance() -> dict[str, str]:
    packages = ("torch", "scikit-learn", "numpy")
    return {
        "profile": "full",
        "device": f"{cpu()}, {torch.get_num_threads()} thread(s)",
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]),
        "commit": commit(ROOT),
    }


def summary(rows: pd.DataFrame) -> str:
    """Return mean errors per table, the share of splits won and the ratio of training times, on all rows."""
    full = rows[rows["measurements"] == rows["measurements"].max()].set_index(["table", "seed"])
    wide = {name: full[full["method"] == name] for name in (OWN, MLP)}
    table = pd.DataFrame(
        {f"{name}: {column}": part.groupby("table")[column].mean() for name, part in wide.items() for column in ("rmse", "mape")}
    )
    table["splits won"] = (wide[OWN]["rmse"] <= wide[MLP]["rmse"]).groupby("table").sum()
    table["times faster"] = (wide[MLP]["seconds"] / wide[OWN]["seconds"]).groupby("table").min()
    return table.round(2).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with alone(PARTIAL):
        measure()


def measure() -> None:
    rows = read_rows(PARTIAL)
    known = {(row["table"], row["method"], row["seed"], row["measurements"]) for row in rows}
    origin = provenance()
    tables = {name: upstream.latency_table(name) for name in upstream.LATENCY_TABLES}
    for (seed, measurements), name in tqdm(list(product(JOBS, tables))):
        for method, predictor in predictors(name).items():
            if (name, method, seed, measurements) in known:
                continue
            result = compare(tables[name], predictor, seed, measurements, repeats=1 if method == MLP else 5)
            row = {"table": name, "method": method, **result, **origin}
            append_rows(PARTIAL, [row])
            rows.append(row)
    frame = pd.DataFrame(rows).sort_values(["table", "measurements", "seed", "method"], ignore_index=True)
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    with open(temporary, "w") as file:
        frame.to_csv(file, index=False, float_format="%.6g")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(RESULTS)
    PARTIAL.unlink()
    print(summary(frame))


if __name__ == "__main__":
    main()
