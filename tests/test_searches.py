"""Searches and what they found, in miniature: complete, and the same in pieces and on a cluster of which a worker is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import warnings
from dataclasses import asdict
from itertools import groupby
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dask import config
from small_nets import reversed_task
from test_measurements import NAME, tables

from llmpp_book import __main__
from llmpp_book.studies import measurements
from llmpp_book.studies import searches as search_benchmark
from llmpp_book.studies.measurements import Inheritance, Study, SupernetTraining
from llmpp_book.studies.paired import paired
from llmpp_book.studies.search_tables import found, searches, stopped
from llmpp_book.studies.searches import LIMITS, MAIN, OTHERS, latency_predictor, limits, measure, plan
from llmpp_core.jobs.files import append_rows, read_rows
from llmpp_core.latency.profiler import LatencyMeasurement, LatencySettings
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.space.search_space import TINY

PLANNED = plan
#: Quick ones: the supernet has the last two iterations at most.
PLAN = [("cheap", LIMITS[1], 0), ("switch 28", LIMITS[1], 0), ("switch 28", LIMITS[2], 1)]


@pytest.fixture(autouse=True)
def few_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_benchmark, "plan", lambda *seeds: PLAN)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the benchmark that searches need, and its checkpoints; latencies follow from depth and width."""
    folder = tmp_path_factory.mktemp("ground")
    study = Study(NAME, folder / "checkpoints", folder / "tfs", threads=1)
    archs, recipe = measurements.architectures(study.task, 12), study.task.supernet_recipe
    study.train("", archs, 1)
    study.run(study.table(".supernets", recipe), [SupernetTraining(supernet="HAT", **study.place)])
    study.run(study.table(".inherited"), [Inheritance(supernet="HAT", arch=arch, **study.place) for arch in archs])
    settings = LatencySettings(len(study.task.vocabulary))
    rows = []
    for arch in archs:
        encoder, decoder = 1.0 + arch.encoder_layers, arch.decoder_layers + arch.decoder_embed_dim / 100
        measured = LatencyMeasurement(encoder, decoder, 0.1, 0.1, 1.0, 0.0, 0.5, "a processor", settings)
        rows.append({"arch": arch.to_hat_dict(), "round": 0, **asdict(measured)})
    append_rows(folder / "tfs" / f"{NAME}.latency.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def measured(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the searches were made one after the other."""
    folder = tmp_path_factory.mktemp("searches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_benchmark, "plan", lambda *seeds: PLAN)
        assert measure(NAME, ground / "checkpoints", results=folder, ground_truth=ground / "tfs", seeds=1, trainings=2, threads=1)
    return folder


# --- what is measured --------------------------------------------------------------------------------------------------


def test_the_plan_has_every_schedule_with_all_seeds_at_the_middle_limit() -> None:
    planned = PLANNED(5, 2)
    assert len(planned) == len(set(planned)) == 5 * 4 + 2 * 10 + 2 * 2 * 6
    for names, seeds in ((MAIN, 5), (OTHERS, 2)):
        for name in names:
            assert {seed for other, limit, seed in planned if (other, limit) == (name, LIMITS[1])} == set(range(seeds))
    assert {limit for _, limit, _ in planned} == set(LIMITS)
    # More seeds later, nothing measured in vain.
    assert set(planned) < set(PLANNED(6, 3))


def test_a_search_has_a_row_and_what_it_found_is_trained(measured: Path, ground: Path) -> None:
    task = reversed_task()
    latency = latency_predictor(task.name, ground / "tfs")
    allowed = limits(task, latency)
    frame = searches(NAME, measured)
    assert list(zip(frame["schedule"], frame["limit_ms"], frame["seed"], strict=True)) == [(n, allowed[q], s) for n, q, s in PLAN]
    np.testing.assert_allclose(frame["latency_ms"], latency.predict(list(frame["architecture"])))
    assert (frame["latency_ms"] <= frame["limit_ms"]).all()
    assert [set(asked) for asked in frame["evaluations"]] == [{"distilled"}, {"distilled", "supernet"}, {"distilled", "supernet"}]
    for row in frame.to_dict("records"):
        assert len(row["iterations"]) == 30
        assert row["iterations"][-1]["best"] == row["best"]
        for name, asked in row["evaluations"].items():
            assert asked == sum(iteration["evaluations"].get(name, 0) for iteration in row["iterations"])
        if row["iterations"][-1]["predictor"] == "supernet":
            assert row["score"] == pytest.approx(row["supernet_score"], abs=1e-5)
    # On the disk the best of an iteration is written where it is another than before.
    written = [[step["best"] for step in row["iterations"] if "best" in step] for row in read_rows(measured / f"{NAME}.jsonl")]
    assert written == [[best for best, _ in groupby(step["best"] for step in row)] for row in frame["iterations"]]
    trained = found(NAME, measured)
    assert set(zip(trained["architecture"], trained["seed"], strict=True)) == {(a, s) for a in frame["architecture"] for s in (0, 1)}
    assert len(trained) == 2 * frame["architecture"].nunique()


def test_the_command_on_a_cluster_comes_to_the_same_when_a_worker_is_killed(
    measured: Path, ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:
        while not (workers := [child for child in multiprocessing.active_children() if "Dask" in child.name]):
            time.sleep(0.01)
        while not (tmp_path / "search" / f"{NAME}.jsonl").exists():
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        os.kill(random.choice(workers).pid or 0, signal.SIGKILL)
        killed.append(True)

    killed: list[bool] = []
    shutil.copytree(ground / "tfs", tmp_path / "tfs")
    words = ["searches", NAME, "--results", str(tmp_path), "--checkpoints", str(ground / "checkpoints"), "--trainings", "2"]
    forkserver.ensure_running()
    with config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        with warnings.catch_warnings():
            # Latency is measured at the end, on a machine that does other things as well; here it only needs to be there.
            warnings.simplefilter("ignore", RuntimeWarning)
            assert __main__.main([*words, "--cluster", "local:2"]) == 0
        killing.join(60)
    assert killed
    assert capsys.readouterr().out == "complete\n"
    latency = read_latency_table(tmp_path / "search" / f"{NAME}.latency.jsonl")
    assert set(latency["architecture"]) == set(searches(NAME, measured)["architecture"])
    assert tables(tmp_path / "search") == tables(measured)


def test_the_supernet_alone_is_stopped_when_it_cost_as_much_as_another_schedule() -> None:
    def row(name: str, seed: int, asked: list[int]) -> dict[str, Any]:
        steps = [
            {"best": i, "supernet_score": -1.0 / (1 + i), "evaluations": {"supernet": n} if n else {}, "seconds": 2.0}
            for i, n in enumerate(asked)
        ]
        return {"schedule": name, "limit_ms": 1.0, "seed": seed, "evaluations": {"supernet": sum(asked)}, "iterations": steps}

    rows = [row("costly", 0, [10, 5, 5]), row("costly", 1, [10, 5, 5]), row("costly", 2, [10])]
    rows += [row("HS-NAS", 0, [0, 15]), row("HS-NAS", 1, [0, 19]), row("HS-NAS", 2, [9]), row("HS-NAS", 3, [99]), row("other", 0, [99])]
    expected = {"limit_ms": 1.0, "best": 1, "supernet_score": -0.5, "evaluations": 15, "seconds": 4.0}
    assert stopped(rows, "HS-NAS") == [{**expected, "seed": 0}, {**expected, "seed": 1}]
    assert [state["best"] for state in stopped(rows, "other")] == [2]


@pytest.mark.parametrize(("spread", "distinct", "groups"), [(0.0, 10, None), (0.0, 3, None), (2.0, 10, None), (2.0, 10, [1, *[2] * 8, 3])])
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_should(spread: float, distinct: int, groups: Any) -> None:
    """Noise is 1: results are equally good or differ more than trainings do. A group of one pair is as uncertain as pairs of the others."""
    rng, archs, hits = np.random.default_rng(0), TINY.sample(40, np.random.default_rng(0)), []
    for _ in range(150):
        scores = np.repeat(spread * rng.normal(size=40), 3) + rng.normal(size=120)
        rows = pd.DataFrame({"architecture": [arch for arch in archs for _ in range(3)], "valid_bleu": scores})
        ours, theirs = ([archs[i] for i in rng.choice(distinct, 10, replace=distinct < 10) + start] for start in (0, 20))
        _, low, high = paired(ours, theirs, rows, groups=groups).interval()
        hits.append(low < 0 < high)
    assert 0.92 < np.mean(hits) <= 0.99


def test_the_difference_of_equal_results_is_certain_and_groups_count_alike() -> None:
    archs = TINY.sample(12, np.random.default_rng(0))
    rows = pd.DataFrame([{"architecture": a, "seed": s, "valid_bleu": i + s} for i, a in enumerate(archs) for s in (0, 1)])
    assert paired(archs, archs, rows).interval() == (0, 0, 0)
    # Of two limits, one with three pairs and one with a single one.
    pairs = ([archs[i] for i in (1, 2, 3, 10)], [archs[i] for i in (0, 1, 2, 0)])
    mean, low, high = paired(*pairs, rows, groups=[1.0, 1.0, 1.0, 2.0]).interval()
    assert mean == pytest.approx((1 + 10) / 2)
    assert low < mean < high
    assert paired(*pairs, rows).value == pytest.approx(13 / 4)
    with pytest.raises(ValueError, match="expected pairs of architectures, got 2 and 1"):
        paired(archs[:2], archs[:1], rows)


# --- what goes wrong ---------------------------------------------------------------------------------------------------


def test_searches_without_their_supernet_or_under_other_limits_are_refused(measured: Path, ground: Path, tmp_path: Path) -> None:
    shutil.copytree(ground / "tfs", tmp_path / "tfs")
    append_rows(tmp_path / f"{NAME}.jsonl", [{**row, "limit_ms": 0.5} for row in read_rows(measured / f"{NAME}.jsonl")[:1]])
    table = tmp_path / "tfs" / f"{NAME}.supernets.jsonl"

    def refused(folder: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            measure(NAME, folder, results=tmp_path, ground_truth=tmp_path / "tfs", threads=1)

    refused(ground / "checkpoints", r"limits of 0\.5 ms; by the latency table they now are .*; move the file away")
    refused(tmp_path / "checkpoints", r"hat-0\.safetensors is gone; remove the row of HAT, seed 0, from .* to train it again$")
    rows = [{**row, "diverged": "the loss is 9"} if row["supernet"] == "HAT" else row for row in read_rows(table)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(ground / "checkpoints", "HAT, seed 0, which is to score candidates, was given up: the loss is 9")
    table.unlink()
    refused(ground / "checkpoints", r"tests\.reversed\.supernets\.jsonl has no HAT, seed 0; measure the benchmark first")


def test_the_cheap_predictor_is_made_again_when_its_demonstrations_change(ground: Path, tmp_path: Path) -> None:
    task = reversed_task()
    shutil.copytree(ground / "tfs", tmp_path / "tfs")
    first, path = search_benchmark.distilled_predictor(task, tmp_path, tmp_path / "tfs")
    assert search_benchmark.distilled_predictor(task, tmp_path, tmp_path / "tfs")[1] == path
    table = tmp_path / "tfs" / f"{NAME}.jsonl"
    rows = [{**row, "valid_bleu": 100 - row["valid_bleu"]} for row in read_rows(table)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second, other = search_benchmark.distilled_predictor(task, tmp_path, tmp_path / "tfs")
    assert other != path
    archs = measurements.architectures(task, 12)
    assert np.corrcoef(first.predict(archs), second.predict(archs))[0, 1] < 0


def test_a_recording_can_teach_the_cheap_predictor(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archs = measurements.architectures(reversed_task(), 30)
    labels = pd.DataFrame({"architecture": archs, "predicted": [10.0 * arch.decoder_layers for arch in archs]})
    monkeypatch.setattr(search_benchmark, "recordings", lambda name: ["a-model"] if name == f"{NAME}-distill" else [])
    monkeypatch.setattr(search_benchmark, "answers", lambda name, recording: labels)
    student, path = search_benchmark.distilled_predictor(reversed_task(), tmp_path, ground / "tfs", "a-model")
    assert (student.teacher_, student.n_labels_) == ("a-model", 30)
    assert np.corrcoef(student.predict(archs), labels["predicted"])[0, 1] > 0.9
    control = search_benchmark.distilled_predictor(reversed_task(), tmp_path, ground / "tfs")[1]
    assert path != control
    monkeypatch.setattr(search_benchmark, "plan", lambda *seeds: PLAN[:1])
    where = {"results": tmp_path, "ground_truth": ground / "tfs", "seeds": 1, "trainings": 1, "threads": 1}
    assert measure(NAME, ground / "checkpoints", **where, teacher="a-model")
    assert len(searches(NAME, tmp_path, "a-model")) == 1
    assert not (tmp_path / f"{NAME}.jsonl").exists(), "each teacher has a table of its own"
    with pytest.raises(ValueError, match=r"no teacher 'nobody' is recorded for tests\.reversed-distill; there are offline, ridge, a-model"):
        measure(NAME, ground / "checkpoints", **where, teacher="nobody")


def test_a_place_that_cannot_be_written_is_found_before_the_cheap_predictor_is_made(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(search_benchmark, "distilled_predictor", lambda *_: pytest.fail("the work began"))
    for checkpoints, results in ((ground / "checkpoints", tmp_path / "file"), (tmp_path / "file", tmp_path)):
        with pytest.raises(ValueError, match="cannot be written: its folder is a file"):
            measure(NAME, checkpoints, results=results, ground_truth=ground / "tfs")


def test_a_limit_is_rounded_only_where_some_architecture_keeps_it() -> None:
    """Networks of a millisecond differ by less than the tenth that limits are rounded to."""

    class Fixed:
        def predict(self, archs: Any) -> np.ndarray:
            return np.linspace(1.508, 1.548, len(archs))

    task: Any = SimpleNamespace(space=TINY)
    assert list(limits(task, Fixed()).values()) == [1.518, 1.528, 1.5380]  # type: ignore[arg-type]
    Fixed.predict = lambda self, archs: np.linspace(7.0, 17.04, len(archs))  # type: ignore[method-assign]
    assert list(limits(task, Fixed()).values()) == [9.5, 12.0, 14.5]  # type: ignore[arg-type]
