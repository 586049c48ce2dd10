"""The benchmark in miniature: complete, the same however often it is stopped, and read back as frames."""

from __future__ import annotations

import json
import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import MICRO, reversed_task

from llmpp_book.studies import ground_truth, measurements, search_tables
from llmpp_book.studies.ground_truth import proxy_scores, records, supernet_scores, supernets, trainings
from llmpp_book.studies.measurements import JUDGE, SUPERNET_KINDS, architectures, measure, supernet_path
from llmpp_core.jobs.files import read_rows
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.nets import training
from llmpp_core.nets.checkpoints import load_network
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.proxies import PROXIES
from llmpp_core.nets.training import train
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.upstream import SUPERNETS

NAME = "tests.reversed"
#: Numbers of the miniature: three architectures, trained twice each.
SMALL: dict[str, Any] = {"n": 3, "seeds": 2, "threads": 1}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(NAME)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the miniature was measured in one go."""
    folder = tmp_path_factory.mktemp("measured")
    assert measure(NAME, folder / "checkpoints", results=folder, **SMALL)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # Times on a machine that does other things as well; here they only need to be there.
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(measurements, "CHECKED", 4)
        measurements.measure_latency(NAME, results=folder, n=3, repeats=1)
    return folder


def tables(folder: Path) -> dict[str, list[str]]:
    """Return the rows of all tables but those of latency, sorted, without what depends on the clock or on work on the repository."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k and k not in ("parts", "commit")}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    paths = [path for path in folder.glob("*.jsonl") if "latency" not in path.name]
    return {path.name: sorted(json.dumps(timeless(row)) for row in read_rows(path)) for path in paths}


# --- what is measured -------------------------------------------------------------------------------------------------


def test_every_architecture_has_a_row_per_seed_and_it_is_what_training_by_hand_gives(measured: Path, task: Task) -> None:
    frame = trainings(NAME, measured)
    assert set(zip(frame["architecture"], frame["seed"], strict=True)) == {(a, s) for a in architectures(task, 3) for s in (0, 1)}
    assert len(frame) == frame["valid_loss"].nunique() == 6, "seeds differ, and so do architectures"
    for row in frame.to_dict("records"):
        arch = row["architecture"]
        assert row["diverged"] is None
        assert (row["parameters"], row["flops"]) == (count_parameters(arch, 32), count_flops(arch, len(task.vocabulary), qkv_dim=32))
        assert row["embedding_parameters"] == len(task.vocabulary) * max(arch.encoder_embed_dim, arch.decoder_embed_dim)
        assert row["recipe"] == asdict(task.recipe)
        assert {"device", "libraries", "commit", "data_sha256"} <= row.keys()
        assert row["valid_nll"] < row["valid_loss"] < 2.2
        assert row["train_seconds"] > 0
    row = frame.iloc[4]
    model = Transformer(row["architecture"], task.space, len(task.vocabulary), task.recipe.dropout)
    history = train(model, task.pairs["train"], task.recipe, seed=int(row["seed"]))
    assert row["train_loss"] == pytest.approx(history.loss, abs=1e-4)
    assert row["train_tokens"] == history.tokens
    assert row["valid_loss"] == pytest.approx(validation_loss(model, task.pairs["valid"]), abs=1e-4)
    assert row["test_bleu"] == pytest.approx(task.bleu(translate(model, task.pairs["test"]), "test"), abs=1e-4)


def test_every_supernet_scores_every_architecture_with_inherited_weights(measured: Path, task: Task) -> None:
    nets = supernets(NAME, measured)
    # Those of the paper's records, and a second one of the first kind.
    assert list(zip(nets["supernet"], nets["seed"], strict=True)) == [*((name, 0) for name in SUPERNETS), (SUPERNETS[0], JUDGE)]
    assert list(SUPERNET_KINDS) == list(SUPERNETS)
    assert nets["recipe"].tolist() == [asdict(task.supernet_recipe)] * 5
    scores = supernet_scores(NAME, measured)
    assert len(scores) == 3 * nets["diverged"].isna().sum() >= 12
    for row in scores.iloc[::5].to_dict("records"):
        network = load_network(supernet_path(measured / "checkpoints", NAME, row["supernet"], row["seed"]), MICRO)
        assert network.kind == SUPERNET_KINDS[row["supernet"]][0]
        subnet = network.subnet(row["architecture"])
        assert row["valid_loss"] == pytest.approx(validation_loss(subnet, task.pairs["valid"]), abs=1e-4)
        assert row["valid_bleu"] == pytest.approx(task.bleu(translate(subnet, task.pairs["valid"]), "valid"), abs=1e-4)
    proxies = proxy_scores(NAME, measured)
    assert set(zip(proxies["proxy"], proxies["architecture"], strict=True)) == {(p, a) for p in PROXIES for a in architectures(task, 3)}
    assert len(list((measured / "checkpoints").iterdir())) == 5, "checkpoints of supernets are kept, those of single architectures are not"


def test_records_are_one_row_per_architecture_as_upstream(measured: Path, task: Task) -> None:
    frame, rows = records(NAME, measured), trainings(NAME, measured)
    assert frame["architecture"].tolist() == architectures(task, 3)
    assert [arch.decoder_layers for arch in frame["architecture"]] == [1, 2, 3]
    assert frame["seeds"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(frame["bleu"], rows.groupby("architecture", sort=False)["valid_bleu"].mean())
    assert {"test_bleu", "parameters", "flops", "latency_ms", *SUPERNETS} <= set(frame)
    assert frame.notna().all(axis=None)
    # Latency is also measured of architectures that its predictor has not seen.
    known, checked = (set(read_latency_table(measured / f"{NAME}.{name}.jsonl")["architecture"]) for name in ("latency", "latency-check"))
    assert known == set(architectures(task, 3)) < checked
    assert len(checked) == 7


# --- stopped, side by side, and made longer ---------------------------------------------------------------------------


def test_in_pieces_it_comes_to_the_same(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not measure(NAME, tmp_path, results=tmp_path, **SMALL, seconds=-1)
    assert not list(tmp_path.iterdir())
    # Fewer architectures and seeds become more.
    assert measure(NAME, tmp_path / "checkpoints", results=tmp_path, n=1, seeds=1, threads=1)
    assert len(trainings(NAME, tmp_path)) == 1
    pieces = 1
    while not measure(NAME, tmp_path / "checkpoints", results=tmp_path, **SMALL, seconds=0.3, progress=True):
        pieces += 1
        # What was begun goes on before anything new is begun.
        assert len(list((tmp_path / "checkpoints").iterdir())) <= 6
    assert pieces > 1
    assert tables(tmp_path) == tables(measured)
    assert "tests.reversed.inherited: " in capsys.readouterr().err


def test_processes_side_by_side_come_to_the_same(measured: Path, task: Task, tmp_path: Path) -> None:
    # A task that no name stands for is sent along.
    unnamed = replace(task, title="sent along")
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        assert measure(unnamed, tmp_path / "checkpoints", results=tmp_path, **SMALL, executor=pool)
    assert tables(tmp_path) == tables(measured)


def test_a_training_outlives_a_row_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmpp_core.jobs.table.append_rows", full)
        with pytest.raises(OSError, match="No space left"):
            measure(NAME, tmp_path / "nets", results=tmp_path, n=1, seeds=1, threads=1)
    assert len(list((tmp_path / "nets").iterdir())) == 1
    study = measurements.Study(NAME, tmp_path / "nets", tmp_path, threads=1)
    monkeypatch.setattr(training, "_update", lambda *_: pytest.fail("it trains again"))
    assert study.train("", architectures(study.task, 1), 1)
    assert not list((tmp_path / "nets").iterdir())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_reported_and_not_averaged_in(tmp_path: Path) -> None:
    wild = replace(reversed_task(), name="tests.wild")
    object.__setattr__(wild, "supernet_recipe", replace(wild.supernet_recipe, learning_rate=1e30))
    assert measure(wild, tmp_path, results=tmp_path, n=1, seeds=1, threads=1)
    reasons = ground_truth.given_up(tmp_path / "tests.wild.supernets.jsonl")
    assert [reason.partition(": the loss is nan at update")[0] for reason in reasons] == [
        *(f"{name}, seed 0" for name in SUPERNETS),
        "HAT, seed 1",
    ]
    with pytest.raises(ValueError, match=r"tests\.wild\.inherited\.jsonl is not there or empty"):
        supernet_scores("tests.wild", tmp_path)
    object.__setattr__(wild, "recipe", replace(wild.recipe, learning_rate=1e30))
    apart = tmp_path / "apart"
    study = measurements.Study(wild, apart, apart, threads=1)
    study.train("", architectures(wild, 1), 2)
    table = tmp_path / "tests.wild.jsonl"
    table.write_text(table.read_text() + (apart / table.name).read_text().splitlines()[1] + "\n")
    frame = trainings("tests.wild", tmp_path)
    assert frame["diverged"].notna().tolist() == [False, True]
    assert frame["valid_bleu"].isna().tolist() == [False, True]
    (reason,) = ground_truth.given_up(table)
    assert reason.startswith(f"{architectures(wild, 1)[0]}, seed 1: the loss is nan")
    assert measurements._course(training.History(loss=[1.23456, math.nan, math.inf]))["train_loss"] == [1.2346, None, None]


READERS = [
    (trainings, "", "benchmark none"),
    (records, "", "benchmark none"),
    (supernet_scores, ".inherited", "benchmark none"),
    (supernets, ".supernets", "benchmark none"),
    (search_tables.searches, "", "searches TASK"),
    (search_tables.found, ".found", "searches TASK"),
]


@pytest.mark.parametrize(("read", "table", "command"), READERS)
def test_a_table_that_is_missing_says_how_to_get_it(read: Any, table: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"none{table}\.jsonl is not there or empty; measure it with: llmpp {command}"):
        read("none", tmp_path)


def test_a_supernet_whose_row_is_there_but_not_its_weights_is_named(measured: Path, tmp_path: Path) -> None:
    for path in measured.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{NAME}.inherited.jsonl").unlink()
    with pytest.raises(ValueError, match=r"tests\.reversed-hat-0\.safetensors is gone; remove the row of HAT, seed 0"):
        measure(NAME, tmp_path / "elsewhere", results=tmp_path, **SMALL)


@pytest.mark.parametrize("what", ["text", "space", "recipe"])
def test_a_table_of_something_else_is_refused(what: str, measured: Path, task: Task, tmp_path: Path) -> None:
    path = tmp_path / f"{task.name}.jsonl"
    path.write_bytes((measured / path.name).read_bytes())
    valid = task.text["valid"]
    changed: dict[str, Any] = {
        "text": {**task.text, "valid": replace(valid, src=valid.src[::-1], tgt=valid.tgt[::-1])},
        "space": replace(task.space, decoder_ffn_dims=(*task.space.decoder_ffn_dims, 8)),
        "recipe": replace(task.recipe, learning_rate=1.0),
    }
    named = r"recipe\.learning_rate" if what == "recipe" else "data_sha256"
    with pytest.raises(ValueError, match=rf"jsonl:1: made from something else: {named} is .* there and .* here; move the file away"):
        measure(replace(task, **{what: changed[what]}), tmp_path, results=tmp_path, n=1, seeds=1)


@pytest.mark.parametrize("name", ["synthetic", "synthetic.supernets"])
def test_the_stored_tables_are_of_the_recipes_of_today(name: str, tmp_path: Path) -> None:
    study = measurements.Study("synthetic", tmp_path, ground_truth.RESULTS)
    recipe = study.task.supernet_recipe if "supernets" in name else study.task.recipe
    assert study.table(name.removeprefix("synthetic"), recipe).rows()
    with pytest.raises(ValueError, match=r"jsonl:1: .*recipe\.accumulate is 1 there and 2 here; move the file away"):
        study.table(name.removeprefix("synthetic"), replace(recipe, accumulate=2)).rows()
