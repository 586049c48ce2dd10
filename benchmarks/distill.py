"""LLM-Distill-PP: our recipe against the official one, on the same labels, in one run.

``python benchmarks/distill.py`` labels 3,000 architectures with each teacher, trains every student on them, and compares
students with the teacher on 2,000 other architectures, and with training from scratch on the 20 test architectures of the
split. Teachers know only the ten demonstrations of a split. Recipes were settled on other samples (seeds 100 to 203).
Takes about 20 minutes; set OMP_NUM_THREADS=1 to compare times on one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from llmpp_book.studies.questions import WMT_TASKS
from llmpp_core.jobs.provenance import commit
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.metrics import kendall_tau, mean_absolute_error
from llmpp_core.predictors.baselines import baselines
from llmpp_core.predictors.distill import OFFICIAL, DistilledPredictor
from llmpp_core.space.features import HATFeatures, OfficialFeatures
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import TFSSplit, tfs_splits

ROOT = Path(__file__).resolve().parents[1]
SEED = 2024
N_LABELS, N_UNSEEN = 3000, 2000


class PlainOfficial:
    """The official recipe as one would write it in PyTorch, with as many threads as PyTorch takes: checks our version's time."""

    def fit(self, archs: list, labels: np.ndarray) -> None:
        torch.manual_seed(0)
        widths = (10, *OFFICIAL["hidden"])
        layers = [part for i, o in pairwise(widths) for part in (torch.nn.Linear(i, o), torch.nn.ReLU())]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 1))
        adam = torch.optim.Adam(self.net.parameters(), lr=OFFICIAL["learning_rate"])
        x, y = torch.tensor(OfficialFeatures().transform(archs)).float(), torch.tensor(labels).float()
        for _ in range(OFFICIAL["steps"]):
            batch = torch.randperm(len(y))[: OFFICIAL["batch_size"]]
            loss = torch.nn.functional.mse_loss(self.net(x[batch]).squeeze(), y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()

    def predict(self, archs: list) -> np.ndarray:
        with torch.no_grad():
            return self.net(torch.tensor(OfficialFeatures().transform(archs)).float()).squeeze(-1).numpy()


def students(split: TFSSplit) -> dict[str, Callable[[], Any]]:
    """Return what makes each student; the plain loop is timed on one split per task."""
    makers: dict[str, Callable[[], Any]] = {
        "ours": DistilledPredictor,
        "ours, official features": lambda: DistilledPredictor(space=HAT_WMT, features="official"),
        "ridge regression, features of ours": lambda: make_pipeline(
            make_union(*HAT_WMT.feature_set("all")), StandardScaler(), RidgeCV(np.logspace(-4, 3, 8))
        ),
        "official": lambda: DistilledPredictor(space=HAT_WMT, **OFFICIAL),
    }
    return {**makers, "official, plain PyTorch": PlainOfficial} if split.seed == 123 else makers


def teachers(split: TFSSplit, client: Client) -> dict[str, Any]:
    """Return predictors fitted on the ten demonstrations of a split."""
    kernel = ConstantKernel() * Matern(3.0, (0.5, 50.0), nu=2.5) + WhiteKernel(0.01, (1e-8, 1.0))
    rough = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    made = {
        f"offline endpoint {MODEL}": LLMPredictor(client, WMT_TASKS[split.task], form="batched"),
        "Gaussian process, fixed smooth kernel": baselines(HAT_WMT.qkv_dim)["HAT + costs, Gaussian process"],
        "Gaussian process, fitted Matern kernel": make_pipeline(HATFeatures(), StandardScaler(), rough),
    }
    archs, scores = list(split.demonstrations["architecture"]), split.demonstrations["bleu"].to_numpy()
    return {name: teacher.fit(archs, scores) for name, teacher in made.items()}


def measure(splits: list[TFSSplit]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(SEED)
    labelled, unseen = HAT_WMT.sample_balanced(N_LABELS, rng), HAT_WMT.sample(N_UNSEEN, rng)
    depth = [arch.decoder_layers for arch in unseen]
    DistilledPredictor(space=HAT_WMT, steps=20).fit(labelled[:50], np.arange(50.0))  # loads what PyTorch loads late
    with tempfile.TemporaryDirectory() as folder, OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=Path(folder) / "cache.sqlite3")
        for split in splits:
            test, true = list(split.test["architecture"]), split.test["bleu"].to_numpy()
            for name, teacher in teachers(split, client).items():
                labels, expected = teacher.predict(labelled), teacher.predict(unseen)
                for recipe, make in {"teacher": lambda teacher=teacher: teacher, **students(split)}.items():
                    student, wall, cpu = make(), time.perf_counter(), time.process_time()
                    if student is not teacher:
                        student.fit(labelled, labels)
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                    predicted, on_test = student.predict(unseen), student.predict(test)
                    yield {
                        "teacher": name,
                        "task": split.task,
                        "split": split.seed,
                        "recipe": recipe,
                        "features": getattr(student, "features_", ""),
                        "labels": N_LABELS,
                        "unseen": N_UNSEEN,
                        "mae_teacher": mean_absolute_error(expected, predicted),
                        "tau_teacher": kendall_tau(expected, predicted),
                        "tau_teacher_within_depth": kendall_tau(expected, predicted, depth),
                        "mae_true": mean_absolute_error(true, on_test),
                        "tau_true": kendall_tau(true, on_test),
                        "train_s": wall,
                        "train_cpu_s": cpu,
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=[123, 456, 789], help="seeds of the paper's splits")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "distill_benchmark.csv")
    arguments = parser.parse_args()
    origin = {
        "seed": SEED,
        "device": f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads",
        "libraries": " ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn", "numpy")),
        "commit": commit(ROOT),
    }
    rows = []
    for row in measure([split for split in tfs_splits() if split.seed in arguments.splits]):
        rows.append({**row, **origin})
        print(
            f"{row['teacher'][:36]:36} {row['task']} {row['split']} {row['recipe']:36} {row['mae_teacher']:.4f} {row['train_s']:.2f} s",
            flush=True,
        )
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out, index=False, float_format="%.5g")
    print("\nmeans over splits and tasks; ratios are ours to official, split by split")
    print(
        table.groupby(["teacher", "recipe"], sort=False)[["mae_teacher", "tau_teacher", "mae_true", "tau_true", "train_s", "train_cpu_s"]]
        .mean()
        .round(4)
        .to_string()
    )
    keys = ["teacher", "task", "split"]
    ours, official = (table[table["recipe"] == recipe].set_index(keys) for recipe in ("ours", "official"))
    summary = pd.DataFrame(
        {
            "worst MAE ratio": ours["mae_teacher"] / official["mae_teacher"],
            "least speed-up": official["train_s"] / ours["train_s"],
            "least tau": ours["tau_teacher"],
        }
    ).groupby("teacher", sort=False)
    print(
        pd.concat([summary["worst MAE ratio"].max(), summary["least speed-up"].min(), summary["least tau"].min()], axis=1)
        .round(4)
        .to_string()
    )


if __name__ == "__main__":
    main()
