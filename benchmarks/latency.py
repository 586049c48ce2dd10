"""Latency predictors on HAT's eight tables: ours, two simple ones and HAT's MLP on the same splits, errors and training time.

``python benchmarks/latency.py`` takes about half an hour on one core, nearly all of it for the MLP. It can be interrupted: what is
done is kept in a JSONL file below _build and not done again. At the end everything goes to results/latency_predictors.csv.
``--transfer`` compares instead what a few measurements of one device and the table of another tell, in a minute, and writes
results/latency_transfer.csv.
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from llmpp_book.studies.latency import JOBS, MLP, OWN, RESULTS, TRANSFER_RESULTS, all_transfers, compare, predictors
from llmpp_core import upstream
from llmpp_core.jobs.files import alone, append_rows, read_rows, replace_file
from llmpp_core.jobs.provenance import commit, processor

ROOT = Path(__file__).resolve().parents[1]
PARTIAL = ROOT / "_build" / "latency_predictors.jsonl"


def provenance() -> dict[str, str]:
    packages = ("torch", "scikit-learn", "numpy")
    return {
        "profile": "full",
        "device": f"{processor()}, {torch.get_num_threads()} thread(s)",
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
    parser.add_argument("--transfer", action="store_true", help="compare transfer between devices only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.transfer:
        keep(TRANSFER_RESULTS, pd.concat([all_transfers(read_tables(), second).assign(**provenance()) for second in (False, True)]), "%.4g")
        return
    with alone(PARTIAL):
        measure()


def read_tables() -> dict[str, pd.DataFrame]:
    return {name: upstream.latency_table(name) for name in upstream.LATENCY_TABLES}


def keep(path: Path, frame: pd.DataFrame, numbers: str) -> None:
    replace_file(path, frame.to_csv(index=False, float_format=numbers).encode())


def measure() -> None:
    rows = read_rows(PARTIAL)
    known = {(row["table"], row["method"], row["seed"], row["measurements"]) for row in rows}
    origin = provenance()
    tables = read_tables()
    for (seed, measurements), name in tqdm(list(product(JOBS, tables))):
        for method, predictor in predictors(name).items():
            if (name, method, seed, measurements) in known:
                continue
            result = compare(tables[name], predictor, seed, measurements, repeats=1 if method == MLP else 5)
            row = {"table": name, "method": method, **result, **origin}
            append_rows(PARTIAL, [row])
            rows.append(row)
    frame = pd.DataFrame(rows).sort_values(["table", "measurements", "seed", "method"], ignore_index=True)
    keep(RESULTS, frame, "%.6g")
    PARTIAL.unlink()
    print(summary(frame))


if __name__ == "__main__":
    main()
