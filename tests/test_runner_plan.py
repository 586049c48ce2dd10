"""Planning: everything that is wrong with what was asked for is said before anything runs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from small_book import small_book, write_notebook

from llmpp_book.errors import InputError
from llmpp_book.runner import plan as runner_plan
from llmpp_book.runner.console import Console
from llmpp_book.runner.notebook import Paths, sha256
from llmpp_book.runner.status import DONE, Record, write_record
from llmpp_core import upstream as sources


@pytest.fixture
def book(tmp_path: Path) -> Paths:
    paths = small_book(tmp_path)
    for stem, after in {"01_a": [], "02_b": ["01_a"], "03_c": ["02_b"], "04_d": []}.items():
        write_notebook(paths.notebooks, stem, after=after)
    return paths


def jobs(paths: Paths, *names: str, profile: str = "smoke", **parameters: Any) -> dict[str, runner_plan.Job]:
    notebooks = runner_plan.read_notebooks(paths)
    return runner_plan.plan(
        paths, notebooks, runner_plan.select(notebooks, names), profile, parameters, force=False, console=Console(False)
    )


def test_names_are_numbers_or_stems_and_none_means_all(book: Paths) -> None:
    notebooks = runner_plan.read_notebooks(book)
    assert runner_plan.select(notebooks, ["04", "02_b", "02"]) == ["02_b", "04_d"]
    assert runner_plan.select(notebooks, []) == ["01_a", "02_b", "03_c", "04_d"]
    with pytest.raises(InputError, match=re.escape("unknown notebook '5'; known are 01_a, 02_b, 03_c, 04_d")):
        runner_plan.select(notebooks, ["01", "5"])


def test_what_a_notebook_comes_after_runs_too_and_first(book: Paths) -> None:
    assert list(jobs(book, "03")) == ["01_a", "02_b", "03_c"]
    assert list(jobs(book, "04")) == ["04_d"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"needs": ["tsf"]}, "05_e needs 'tsf', which is unknown; known are tfs, unlabelled, latency, multi30k"),
        ({"after": ["09_x"]}, "05_e needs '09_x', which is unknown; known are 01_a, 02_b, 03_c, 04_d, 05_e"),
        ({"after": ["05_e"]}, "notebooks wait for each other: 05_e after 05_e"),
    ],
)
def test_declarations_of_what_does_not_exist_are_refused(book: Paths, declared: dict[str, Any], message: str) -> None:
    write_notebook(book.notebooks, "05_e", **declared)
    with pytest.raises(InputError, match=re.escape(message)):
        runner_plan.read_notebooks(book)


def test_only_parameters_that_differ_from_the_defaults_are_set(book: Paths) -> None:
    assert jobs(book, "01", seed=0, rate=0.5)["01_a"].parameters == {}
    assert jobs(book, "01", profile="full", seed=2)["01_a"].parameters == {"profile": "full", "seed": 2}
    assert jobs(book, "01", rate="1e-3")["01_a"].parameters == {"rate": 0.001}
    assert jobs(book, "01", rate=1)["01_a"].parameters == {"rate": 1.0}


def test_parameters_are_for_the_named_notebooks_the_profile_for_all(book: Paths) -> None:
    found = jobs(book, "02", profile="full", seed=2)
    assert found["01_a"].parameters == {"profile": "full"}
    assert found["02_b"].parameters == {"profile": "full", "seed": 2}
    assert found["02_b"].run["seed"] == 2


def test_a_job_names_the_command_that_repeats_it(book: Paths) -> None:
    assert jobs(book, "01")["01_a"].command() == "llmpp run 01_a"
    command = jobs(book, "01", profile="full", seed=2)["01_a"].command()
    assert command == "llmpp run 01_a --profile full -p seed=2"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"profile": "ful"}, "unknown profile 'ful'; allowed are smoke, full"),
        ({"sed": 1}, "01_a has no parameter 'sed'; its parameters are profile, seed, rate"),
        ({"seed": "x"}, "01_a: parameter seed is 'x'; expected int as in its default 0"),
        ({"seed": 1.5}, "01_a: parameter seed is 1.5; expected int as in its default 0"),
        ({"seed": True}, "01_a: parameter seed is True; expected int as in its default 0"),
        ({"rate": "fast"}, "01_a: parameter rate is 'fast'; expected float as in its default 0.5"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(book: Paths, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        jobs(book, "01", **asked)


def test_the_profile_is_no_ordinary_parameter(book: Paths) -> None:
    with pytest.raises(InputError, match="not set with -p but with --profile"):
        runner_plan.check_parameters([], "smoke", {"profile": "paper"})


def test_a_change_reaches_the_notebooks_that_come_after(book: Paths) -> None:
    before = {stem: job.content for stem, job in jobs(book).items()}
    write_notebook(book.notebooks, "02_b", "1", after=["01_a"])
    changed = {stem for stem, job in jobs(book).items() if job.content != before[stem]}
    assert changed == {"02_b", "03_c"}


# --- upstream files -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one whole file for each of two groups; the cache is empty and there is no network."""
    folder = tmp_path / "data"
    registry = {}
    for group in ("tfs", "latency"):
        name = f"{sources.GROUPS[group]}file"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(group)
        registry[name] = (hashlib.sha256(group.encode()).hexdigest(), len(group))
    monkeypatch.setattr(sources, "registry", lambda: registry)
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "online", lambda: False)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(folder))
    return folder


def test_the_origin_of_data_is_known(data: Path, tmp_path: Path) -> None:
    assert runner_plan.find_data({"tfs", "latency"}, Console(False)) == ({"tfs": "LLMPP_DATA_DIR", "latency": "LLMPP_DATA_DIR"}, {})
    (data / "hat").rename(tmp_path / "hat")
    (tmp_path / "cache").mkdir()
    (tmp_path / "hat").rename(tmp_path / "cache" / "hat")
    assert runner_plan.find_data({"tfs", "latency"}, Console(False))[0] == {"tfs": "LLMPP_DATA_DIR", "latency": "cache"}


def test_the_network_is_asked_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sources, "online", lambda: bool(asked.append(1)))
    monkeypatch.delenv("LLMPP_DATA_DIR")
    found, absent = runner_plan.find_data({"tfs", "latency"}, Console(False))
    assert (found, len(asked)) == ({}, 1)
    assert absent["tfs"] == "tfs is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"


def test_a_download_that_fails_is_a_reason_not_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "online", lambda: True)
    monkeypatch.setattr(sources, "_MIRRORS", dict.fromkeys(sources._MIRRORS, "http://127.0.0.1:9/"))
    monkeypatch.delenv("LLMPP_DATA_DIR")
    found, absent = runner_plan.find_data({"tfs"}, Console(False))
    assert found == {}
    assert "could not be downloaded" in absent["tfs"]


def test_a_damaged_file_stops_the_plan(data: Path, book: Paths) -> None:
    write_notebook(book.notebooks, "05_e", needs=["tfs"])
    (data / sources.GROUPS["tfs"] / "file").write_text("tampered")
    with pytest.raises(sources.DamagedFileError, match="is damaged"):
        jobs(book, "05")


def test_what_comes_after_a_notebook_without_data_changes_when_they_arrive(data: Path, book: Paths, monkeypatch: Any) -> None:
    write_notebook(book.notebooks, "05_e", needs=["tfs"])
    write_notebook(book.notebooks, "06_f", after=["05_e"])
    here = jobs(book, "06")
    monkeypatch.delenv("LLMPP_DATA_DIR")
    absent = jobs(book, "06")
    assert here["05_e"].missing == ""
    assert absent["05_e"].missing
    assert here["05_e"].content == absent["05_e"].content, "what was computed from the same files stays valid"
    assert here["06_f"].content != absent["06_f"].content
    page = write_notebook(book.pages, "05_e")
    write_record(book.record("05_e"), Record(DONE, content=here["05_e"].content, page=sha256(page)))
    assert jobs(book, "06")["05_e"].current
    assert jobs(book, "06")["06_f"].content == here["06_f"].content, "and so does what comes after it"
