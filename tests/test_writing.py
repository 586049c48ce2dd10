"""Files that grow: one process writes each, and it is found out before the work whether it can.

Tables are tested in test_table.py; here are all others that write: searches, `MeasuredLatency`, prepared corpora, trainings, pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpora_on_disk import write_corpus
from searches import Additive
from small_book import write_notebook
from small_nets import VOCAB, reversed_pairs

from llmpp_book.__main__ import main
from llmpp_book.errors import InputError
from llmpp_book.runner import run as runner
from llmpp_book.runner.notebook import Paths
from llmpp_core.jobs.files import alone, read_rows
from llmpp_core.latency import profiler
from llmpp_core.latency.profiler import LatencySettings, MeasuredLatency
from llmpp_core.nets import training
from llmpp_core.nets.training import Recipe, train
from llmpp_core.nets.transformer import Transformer
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.records import read_records
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY
from llmpp_core.text.wmt import Settings, prepare

SETTINGS = LatencySettings(100, warmup=0, runs=1)
Work = Callable[[], None]


def search(path: Path, work: Work) -> Any:
    class Working(Additive):
        def predict(self, archs: Any, return_std: bool = False) -> Any:
            work()
            return super().predict(archs, return_std)

    return EvolutionarySearch(TINY, [(Working(), 2)], population=8, parents=2, mutants=3, crossovers=3).run(path)


def latency(path: Path, work: Work) -> Any:
    with pytest.MonkeyPatch.context() as patch:

        def measure(*_: Any) -> Any:
            work()
            return SimpleNamespace(latency_ms=2.0, calibration_ms=1.0)

        patch.setattr(profiler, "measure_latency", measure)
        return MeasuredLatency(TINY, SETTINGS, path)([TINY.smallest()])


def training_of(path: Path, work: Work) -> Any:
    with pytest.MonkeyPatch.context() as patch:

        def update(*arguments: Any) -> Any:
            work()
            return original(*arguments)

        original = training._update
        patch.setattr(training, "_update", update)
        model = Transformer(TINY.smallest(), TINY, VOCAB)
        return train(model, reversed_pairs(20, 0), Recipe(2, 100, 1e-3), seed=0, checkpoint=path)


WRITERS = {"search": search, "latency": latency}


# --- one writer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_second_writer_is_refused_and_the_file_stays_whole(kind: str, tmp_path: Path) -> None:
    path, refused = tmp_path / "rows.jsonl", []

    def rival() -> None:
        if not refused:
            refused.append(True)
            with pytest.raises(ValueError, match=r"rows\.jsonl: another process is adding to it; wait for it, or stop it"):
                WRITERS[kind](path, lambda: None)

    WRITERS[kind](path, rival)
    assert refused
    before = path.read_bytes()
    with alone(path):  # What is complete is only read.
        WRITERS[kind](path, lambda: None)
    assert path.read_bytes() == before


def test_between_two_iterations_a_search_keeps_its_file(tmp_path: Path) -> None:
    made = [EvolutionarySearch(TINY, [(Additive(), 3)], population=8, parents=2, mutants=3, crossovers=3) for _ in range(2)]
    one, two = (search.iterate(tmp_path / "s.jsonl") for search in made)
    next(one)
    with pytest.raises(ValueError, match="another process is adding to it"):
        next(two)


def test_a_latency_that_another_process_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    stale = MeasuredLatency(TINY, SETTINGS, path)
    latency(path, lambda: None)
    assert stale([TINY.smallest()]).tolist() == [2.0]
    assert len(read_rows(path)) == 1


def test_a_folder_is_prepared_by_one_process_and_checked_by_any(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    arguments = ("wmt14.en-de", tmp_path / "out", Settings(200))
    with alone(tmp_path / "out"), pytest.raises(ValueError, match="out: another process is adding to it"):
        prepare(*arguments, corpus=tmp_path / "corpus")
    manifest = prepare(*arguments, corpus=tmp_path / "corpus")
    with alone(tmp_path / "out"):
        assert prepare(*arguments, corpus=tmp_path / "corpus") == manifest


# --- before the work ----------------------------------------------------------------------------------------------


def never() -> None:
    pytest.fail("the work began")


@pytest.mark.parametrize("kind", [*WRITERS, "training"])
@pytest.mark.parametrize("place", ["file/rows.jsonl", "folder"])
def test_what_cannot_be_written_is_found_before_the_work(kind: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    with pytest.raises(
        (ValueError, OSError), match=rf"{path}.*(cannot be written: (its folder is a file|Is a directory)|Is a directory|a folder, not)"
    ):
        {**WRITERS, "training": training_of}[kind](path, never)


def test_the_commands_say_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(training, "_update", lambda *_: never())
    for words in (
        ["train", "tests.reversed", "--supernet", "HAT", "--checkpoint", str(tmp_path / "file" / "net")],
        ["benchmark", "tests.reversed", "--results", str(tmp_path / "file"), "--checkpoints", str(tmp_path)],
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "cannot be written: " in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("folder", ["book", "_build"])
def test_a_run_of_notebooks_does_not_start_without_a_place_for_its_pages(folder: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    write_notebook(paths.notebooks, "01_a", "1 / 0")
    (tmp_path / "book").mkdir()
    paths.claims.write_text("sections: []\n")
    if folder == "book":
        paths.pages.write_text("")
    else:
        (tmp_path / "_build").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: (its folder is a file|Not a directory)"):
        runner.run(paths)


# --- lines that are JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [np.nan, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, object])
def test_the_file_of_a_search_is_json_and_goes_on_whatever_its_predictor_returns(odd: float, kind: Any, tmp_path: Path) -> None:
    class Odd(Additive):
        def predict(self, archs: Any, return_std: bool = False) -> Any:
            scores = super().predict(archs).astype(kind)
            scores[::3] = odd
            return scores

    def make(iterations: int) -> EvolutionarySearch:
        return EvolutionarySearch(TINY, [(Odd(), iterations)], population=8, parents=3, mutants=3, crossovers=3)

    path = tmp_path / "s.jsonl"
    whole = list(make(3).iterate(path))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [record.without_times() for record in read_records(path, Genes(TINY))] == [record.without_times() for record in whole]
