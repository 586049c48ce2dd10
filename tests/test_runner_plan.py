"""Planning: what is chosen, with which parameters and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_book import small_book, write_notebook

from llmpp_book.errors import InputError
from llmpp_book.runner import plan as runner_plan
from llmpp_book.runner.notebook import Paths, read
from llmpp_core import upstream


@pytest.fixture
def book(tmp_path: Path) -> Paths:
    paths = small_book(tmp_path)
    for stem in ("01_a", "02_b", "04_d"):
        write_notebook(paths.notebooks, stem)
    return paths


def jobs(paths: Paths, *names: str, profile: str = "smoke", **parameters: Any) -> dict[str, runner_plan.Job]:
    return runner_plan.plan(paths, names, profile, parameters, force=False, say=lambda _: None)[1]


def test_names_are_numbers_or_stems_and_none_means_all(book: Paths) -> None:
    assert list(jobs(book, "04", "02_b", "02")) == ["02_b", "04_d"]
    assert list(jobs(book)) == ["01_a", "02_b", "04_d"]


def test_a_book_without_notebooks_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no notebooks in"):
        jobs(small_book(tmp_path))


def test_only_parameters_that_differ_from_the_defaults_are_set(book: Paths) -> None:
    assert jobs(book, "01", seed=0, rate=0.5)["01_a"].parameters == {}
    assert jobs(book, "01", rate=1)["01_a"].parameters == {"rate": 1.0}
    job = jobs(book, "01", profile="full", seed=2)["01_a"]
    assert job.parameters == {"profile": "full", "seed": 2}
    assert (job.run["profile"], job.run["seed"]) == ("full", 2)
    assert job.command() == "llmpp run 01_a --profile full -p seed=2"


def test_parameters_may_be_annotated_and_need_not_be_literals(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "01_a")
    content = json.loads(path.read_text())
    content["cells"][1]["source"] = ["seed: int = 3  # of the run\n", "steps = 10 ** 3\n"]
    path.write_text(json.dumps(content))
    assert read(path).defaults == {"seed": 3, "steps": None}


# --- upstream files -----------------------------------------------------------------------------------------------


def find() -> tuple[dict[str, str], dict[str, str]]:
    return runner_plan.find_data({"tfs", "latency"}, lambda _: None)


def test_the_origin_of_data_is_known(data: dict[str, Path], tmp_path: Path) -> None:
    assert find() == ({"tfs": "LLMPP_DATA_DIR", "latency": "LLMPP_DATA_DIR"}, {})
    (tmp_path / "cache").mkdir()
    (tmp_path / "data" / "hat").rename(tmp_path / "cache" / "hat")
    assert find()[0] == {"tfs": "LLMPP_DATA_DIR", "latency": "cache"}


def test_the_network_is_asked_once_and_a_failed_download_is_a_reason(data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = False
    monkeypatch.setattr(upstream, "online", lambda: asked.append(1) or answer)
    monkeypatch.setattr(upstream, "_MIRRORS", dict.fromkeys(upstream._MIRRORS, "http://127.0.0.1:9/"))
    monkeypatch.delenv("LLMPP_DATA_DIR")
    found, absent = find()
    assert (found, len(asked)) == ({}, 1)
    assert absent["tfs"] == "tfs is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"
    answer = True
    assert "could not be downloaded" in find()[1]["tfs"]


def test_a_damaged_file_stops_the_plan_and_absent_data_change_no_hash(
    data: dict[str, Path], book: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook(book.notebooks, "05_e", needs=["tfs"])
    here = jobs(book, "05")["05_e"]
    with monkeypatch.context() as patch:
        patch.delenv("LLMPP_DATA_DIR")
        absent = jobs(book, "05")["05_e"]
    assert (here.missing, bool(absent.missing)) == ("", True)
    assert here.content == absent.content, "what was computed from the same files stays valid"
    data["tfs"].write_text("tampered")
    with pytest.raises(upstream.DamagedFileError, match="is damaged"):
        jobs(book, "05")
