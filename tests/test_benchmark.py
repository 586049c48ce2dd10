"""The benchmark in miniature: complete, the same however often it is stopped or killed, and read back as frames."""

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
from small_nets import MICRO, reversed_task, run_killed

from llmpp_book.studies import ground_truth as benchmark
from llmpp_book.studies import measurements
from llmpp_book.studies.ground_truth import records, supernet_scores, supernets, trainings
from llmpp_book.studies.measurements import SUPERNET_KINDS, architectures, measure, supernet_path
from llmpp_core.jobs.files import read_rows
from llmpp_core.latency.tables import read_latency_table
from llmpp_core.nets import training
from llmpp_core.nets.checkpoints import load_network
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.proxies import PROXIES
from llmpp_core.nets.training import train
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.tasks.registry import load_task, register
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
    with warnings.catch_warnings():
        # Times on a machine that does other things as well; here they only need to be there.
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measurements, "CHECKED", 4)
            measurements.measure_latency(NAME, results=folder, n=3, repeats=1)
    return folder


def tables(folder: Path) -> dict[str, list[str]]:
    """Return the rows of all tables but that of times, sorted, without what depends on the clock or on work on the repository."""
    found = {}
    for path in folder.glob("*.jsonl"):
        if "latency" not in path.name:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[path.name] = sorted(json.dumps({k: v for k, v in row.items() if "seconds" not in k and k != "commit"}) for row in rows)
    return found


# --- what is measured -------------------------------------------------------------------------------------------------


def test_the_architectures_are_balanced_and_more_of_them_begin_with_fewer(task: Task) -> None:
    archs = architectures(task, 12)
    assert [arch.decoder_layers for arch in archs] == [1, 2, 3] * 4
    assert len(set(archs)) == 12
    assert architectures(task, 5) == archs[:5]


def test_every_architecture_has_a_row_per_seed_with_all_that_is_asked_of_it(measured: Path, task: Task) -> None:
    frame = trainings(NAME, measured)
    assert len(frame) == 6
    assert set(zip(frame["architecture"], frame["seed"], strict=True)) == {(a, s) for a in architectures(task, 3) for s in (0, 1)}
    for row in frame.to_dict("records"):
        arch = row["architecture"]
        assert row["diverged"] is None
        assert row["parameters"] == count_parameters(arch, 32)
        assert row["flops"] == count_flops(arch, len(task.vocabulary), qkv_dim=32)
        assert row["embedding_parameters"] == len(task.vocabulary) * max(arch.encoder_embed_dim, arch.decoder_embed_dim)
        assert len(row["train_loss"]) == 20
        assert row["train_seconds"] > 0
        assert row["recipe"]["updates"] == 20
        assert {"device", "libraries", "commit"} <= row.keys()
        assert row["valid_nll"] < row["valid_loss"] < 2.2
        assert min(row["valid_bleu"], row["test_bleu"]) >= 0
    # Seeds differ, and so do architectures.
    assert frame["valid_loss"].nunique() == 6


def test_a_row_is_what_training_by_hand_gives(measured: Path, task: Task) -> None:
    row = trainings(NAME, measured).iloc[0]
    model = measurements.Transformer(row["architecture"], task.space, len(task.vocabulary), task.recipe.dropout)
    history = train(model, task.pairs["train"], task.recipe, seed=int(row["seed"]))
    assert row["train_loss"] == pytest.approx(history.loss, abs=1e-4)
    assert row["train_tokens"] == history.tokens
    assert row["valid_loss"] == pytest.approx(validation_loss(model, task.pairs["valid"]), abs=1e-4)
    assert row["test_bleu"] == pytest.approx(task.bleu(translate(model, task.pairs["test"]), "test"), abs=1e-4)


def test_latency_is_measured_of_architectures_that_its_predictor_has_not_seen(measured: Path, task: Task) -> None:
    tables = [read_latency_table(measured / f"{NAME}.{name}.jsonl") for name in ("latency", "latency-check")]
    known, checked = (set(table["architecture"]) for table in tables)
    assert known == set(architectures(task, 3))
    assert known < checked
    assert len(checked) == 7


def test_every_supernet_scores_every_architecture_with_inherited_weights(measured: Path, task: Task) -> None:
    nets = supernets(NAME, measured)
    assert nets["supernet"].tolist() == list(SUPERNET_KINDS) == list(SUPERNETS)
    assert nets["diverged"].isna().all()
    scores = supernet_scores(NAME, measured)
    assert len(scores) == 12
    for row in scores.iloc[::5].to_dict("records"):
        network = load_network(supernet_path(measured / "checkpoints", NAME, row["supernet"], 0), MICRO)
        assert network.kind == SUPERNET_KINDS[row["supernet"]][0]
        subnet = network.subnet(row["architecture"])
        assert row["valid_loss"] == pytest.approx(validation_loss(subnet, task.pairs["valid"]), abs=1e-4)
        assert row["valid_bleu"] == pytest.approx(task.bleu(translate(subnet, task.pairs["valid"]), "valid"), abs=1e-4)
    assert set(benchmark.proxy_scores(NAME, measured)["proxy"]) == set(PROXIES)
    # Checkpoints of the supernets are kept, those of single architectures are not.
    assert len(list((measured / "checkpoints").iterdir())) == 4


def test_records_are_one_row_per_architecture_as_upstream(measured: Path, task: Task) -> None:
    frame, rows = records(NAME, measured), trainings(NAME, measured)
    assert frame["architecture"].tolist() == architectures(task, 3)
    assert frame["seeds"].tolist() == [2, 2, 2]
    means = rows.groupby("architecture", sort=False)["valid_bleu"].mean()
    np.testing.assert_allclose(frame["bleu"], means)
    assert {"test_bleu", "parameters", "flops", "latency_ms", *SUPERNETS} <= set(frame)
    assert frame.notna().all(axis=None)


# --- stopped, killed, and made longer ---------------------------------------------------------------------------------


def test_measuring_again_changes_nothing(measured: Path) -> None:
    before = {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    assert measure(NAME, measured / "checkpoints", results=measured, **SMALL)
    assert {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()} == before


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
        assert len(list((tmp_path / "checkpoints").iterdir())) <= 5
    assert pieces > 1
    assert tables(tmp_path) == tables(measured)
    assert "tests.reversed.supernets: " in capsys.readouterr().err


def measure_impatiently(folder: Path) -> None:
    """Measure in a process of its own, with a checkpoint every few updates."""
    training._CHECKPOINT_EVERY = 0.03
    measure(NAME, folder / "checkpoints", results=folder, **SMALL)


def test_killed_again_and_again_it_comes_to_the_same(measured: Path, tmp_path: Path) -> None:
    run_killed(measure_impatiently, (tmp_path,), tmp_path, kills=3, rng=np.random.default_rng(0), steps=8)
    assert tables(tmp_path) == tables(measured)


def test_processes_side_by_side_come_to_the_same(measured: Path, task: Task, tmp_path: Path) -> None:
    # A task that no name stands for is sent along.
    unnamed = replace(task, title="sent along")
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        assert measure(unnamed, tmp_path / "checkpoints", results=tmp_path, **SMALL, executor=pool)
    assert tables(tmp_path) == tables(measured)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_reported_and_not_averaged_in(tmp_path: Path) -> None:
    wild = replace(reversed_task(), name="tests.wild")
    object.__setattr__(wild, "supernet_recipe", replace(wild.supernet_recipe, learning_rate=1e30))
    assert measure(wild, tmp_path, results=tmp_path, n=1, seeds=1, threads=1)
    assert supernets("tests.wild", tmp_path)["diverged"].str.startswith("the loss is nan at update").all()
    with pytest.raises(ValueError, match=r"tests\.wild\.inherited\.jsonl is not there or empty"):
        supernet_scores("tests.wild", tmp_path)
    object.__setattr__(wild, "recipe", replace(wild.recipe, learning_rate=1e30))
    apart = tmp_path / "apart"
    assert measure(wild, apart, results=apart, n=1, seeds=2, threads=1)
    table = tmp_path / "tests.wild.jsonl"
    table.write_text(table.read_text() + (apart / table.name).read_text().splitlines()[1] + "\n")
    frame = trainings("tests.wild", tmp_path)
    assert frame["diverged"].notna().tolist() == [False, True]
    assert frame["valid_bleu"].isna().tolist() == [False, True]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in tmp_path.rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line, parse_constant=refuse)


def test_missing_tables_and_checkpoints_say_how_to_get_them(measured: Path, tmp_path: Path) -> None:
    for read, table in ((trainings, ""), (records, ""), (supernet_scores, ".inherited"), (supernets, ".supernets")):
        with pytest.raises(ValueError, match=rf"tests\.none{table}\.jsonl is not there or empty; measure it with: llmpp"):
            read("tests.none", tmp_path)
    with pytest.raises(ValueError, match=r"unknown task 'tests\.none'; known are "):
        measure("tests.none", tmp_path, results=tmp_path)
    # A supernet whose row is there but whose weights are not.
    for path in measured.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{NAME}.inherited.jsonl").unlink()
    with pytest.raises(ValueError, match=r"tests\.reversed-hat-0\.safetensors is gone; remove the row of HAT, seed 0"):
        measure(NAME, tmp_path / "elsewhere", results=tmp_path, **SMALL)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    changed = reversed_task()
    object.__setattr__(changed, "recipe", replace(changed.recipe, updates=2000))
    assert not measure(changed, tmp_path, results=tmp_path / "results", n=1, seeds=1, threads=1, seconds=0.05)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    object.__setattr__(changed, "recipe", replace(changed.recipe, updates=2001))
    with pytest.raises(ValueError, match=r"safetensors is of another training: recipe\.updates is 2000 there and 2001 here"):
        measure(changed, tmp_path, results=tmp_path / "results", n=1, seeds=1, threads=1)


def test_a_table_of_another_recipe_is_refused(measured: Path, task: Task, tmp_path: Path) -> None:
    (tmp_path / f"{task.name}.jsonl").write_bytes((measured / f"{task.name}.jsonl").read_bytes())
    other = replace(task, recipe=replace(task.recipe, learning_rate=1.0))
    with pytest.raises(ValueError, match=r"jsonl:1: measured with learning_rate="):
        measurements.measure(other, tmp_path, results=tmp_path, n=1, seeds=1)


@pytest.mark.parametrize("what", ["text", "space"])
def test_a_table_of_another_text_or_space_is_refused(what: str, measured: Path, task: Task, tmp_path: Path) -> None:
    (tmp_path / f"{task.name}.jsonl").write_bytes((measured / f"{task.name}.jsonl").read_bytes())
    if what == "text":
        valid = task.text["valid"]
        other = replace(task, text={**task.text, "valid": replace(valid, src=valid.src[::-1], tgt=valid.tgt[::-1])})
    else:
        other = replace(task, space=replace(task.space, decoder_ffn_dims=(*task.space.decoder_ffn_dims, 8)))
    with pytest.raises(ValueError, match=r"jsonl:1: measured when the task had another text, vocabulary or search space; move the file"):
        measurements.measure(other, tmp_path, results=tmp_path, n=1, seeds=1)
    # Rows that do not say what they were measured on pass, as before there was a word for it.
    rows = [{k: v for k, v in row.items() if k != "data_sha256"} for row in read_rows(measured / f"{task.name}.jsonl")]
    (tmp_path / "earlier.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measurements.refuse_others(tmp_path / "earlier.jsonl", measurements.task_digest(other), asdict(task.recipe))


@pytest.mark.parametrize("table", ["", ".supernets"])
def test_the_stored_tables_are_of_the_recipes_of_today(table: str) -> None:
    task, path = load_task("synthetic"), benchmark.RESULTS / f"synthetic{table}.jsonl"
    recipe = task.supernet_recipe if table else task.recipe
    measurements.refuse_others(path, measurements.task_digest(task), asdict(recipe))
    with pytest.raises(ValueError, match=r"jsonl:1: measured with accumulate=1, not 2; move the file away"):
        measurements.refuse_others(path, measurements.task_digest(task), asdict(replace(recipe, accumulate=2)))


def test_the_curve_of_a_training_that_broke_off_is_json() -> None:
    assert measurements._curve(training.History(loss=[1.23456, math.nan, math.inf])) == [1.2346, None, None]


def test_a_name_is_registered_once() -> None:
    assert register(NAME)(reversed_task) is reversed_task
    with pytest.raises(ValueError, match=r"there is a task 'tests\.reversed' already"):
        register(NAME)(lambda: reversed_task())
