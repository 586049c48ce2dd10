"""The live sections in miniature: complete, kept, and read as the records are; and bfloat16, in which a GPU trains, against float32."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import reversed_task

from llmpp_book.studies import ground_truth, live, measurements, searches
from llmpp_book.studies.live import SIZES, Live, Size, chosen_device, ranking, side_by_side
from llmpp_core.jobs.files import read_rows
from llmpp_core.latency.tables import LatencySettings
from llmpp_core.metrics import kendall_tau
from llmpp_core.nets.training import train
from llmpp_core.nets.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:machine is busy")

NAME = "tests.reversed"
# What is timed does not matter here; the records have twenty runs of each.
QUICK = partial(LatencySettings, target_length=2, warmup=0, runs=1)
MINI = Size(updates=0.9, architectures=10, trainings=2, rounds=1, seeds=3, iterations=2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Return what is left of all three live sections, run in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "LatencySettings", QUICK)
        patch.setitem(SIZES, "mini", MINI)
        lab = Live(NAME, "mini", "cpu", tmp_path_factory.mktemp("live"))
        lab.search()
    return lab


def test_all_is_there_by_the_size_and_a_second_call_makes_none_of_it_again(measured: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = ground_truth.trainings(NAME, measured.benchmark)
    assert len(trained) == MINI.architectures * MINI.trainings
    assert {row["recipe"]["updates"] for row in read_rows(measured.benchmark / f"{NAME}.jsonl")} == {
        reversed_task().recipe.updates * 9 // 10
    }
    found = read_rows(measured.searched / f"{NAME}.jsonl")
    assert [(row["schedule"], row["seed"]) for row in found] == [(name, seed) for seed in range(3) for name in live.SCHEDULES]
    assert {len(row["iterations"]) for row in found} == {MINI.iterations}
    before = {path: path.read_bytes() for path in measured.folder.rglob("*.jsonl")}
    monkeypatch.setattr(measurements, "LatencySettings", QUICK)
    monkeypatch.setattr(searches.SearchJob, "_work", None)
    measured.search()
    assert {path: path.read_bytes() for path in measured.folder.rglob("*.jsonl")} == before
    assert f"size mini: 36 updates for the supernet and {reversed_task().recipe.updates * 9 // 10} for an architecture" in measured.origin()


def test_what_is_shown_is_what_the_tables_hold(measured: Live) -> None:
    shown = ranking(NAME, measured.benchmark)
    first = measurements.architectures(measured.task, 4)
    scored = ground_truth.trainings(NAME, measured.benchmark).dropna(subset=["valid_bleu"])  # those given up do not count
    means = scored.groupby("architecture", sort=False)[["valid_bleu", "parameters"]].mean()
    assert shown.loc["validation BLEU", "value"] == pytest.approx(means["valid_bleu"].mean())
    assert shown.loc["tau, parameters", "value"] == pytest.approx(kendall_tau(means["valid_bleu"], means["parameters"]))
    assert ranking(NAME, measured.benchmark, 4).loc["validation BLEU", "value"] == pytest.approx(means["valid_bleu"].reindex(first).mean())
    for frame in (shown, live.schedules(NAME, measured.searched), live.found_latency(measured.task, measured.benchmark, measured.searched)):
        assert np.isfinite(frame.to_numpy()).all()
        assert ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()
    cells = side_by_side(shown, lambda: ground_truth.records("nothing", measured.folder))
    assert set(cells["recorded"]) == {"–"}, "what no record has is a dash"
    assert cells.equals(side_by_side(shown, lambda: shown).assign(recorded="–"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing", "tiny", "cpu"), "unknown task 'nothing'; known are "),
        ((NAME, "huge", "cpu"), "size: expected tiny, small, whole, got 'huge'"),
        ((NAME, "tiny", "cuda:99"), "device: 'cuda:99' is not here; allowed are cpu"),
        ((NAME, "tiny", "tpu"), "device: 'tpu' is not here; allowed are cpu"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_made(tmp_path: Path, arguments: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        Live(*arguments, tmp_path)
    assert not any(tmp_path.iterdir())


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert chosen_device("auto") == device


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_bfloat16_trains_as_well_as_float32(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU training is in bfloat16; here both are forced, on any device: other roundings, the same course."""
    task, autocast = reversed_task(), torch.autocast
    losses = {}
    for half in (False, True):

        def forced(kind: str, dtype: torch.dtype, enabled: bool, half: bool = half) -> Any:
            return autocast(kind, dtype, enabled=half)

        monkeypatch.setattr(torch, "autocast", forced)
        model = Transformer(task.space.largest(), task.space, len(task.vocabulary), 0.0).to(device)
        losses[half] = np.array(train(model, task.pairs["train"].to(device), task.recipe, seed=0).loss)
    assert not np.array_equal(losses[True], losses[False]), "bfloat16 rounds"
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert losses[True][-1] < 0.9 * losses[True][0]
